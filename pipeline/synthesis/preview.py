"""Contact sheet of a synthetic dataset."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import schema, store
from pipeline.report import contact_sheet, png
from pipeline.synthesis.shards import Shard

_MAX_PICTURES = 96
_MAX_PER_CLASS = 8
_COLUMNS = 10
_READ_THREADS = 16


def write_contact_sheet(
    output: str, digest: str, shards: Sequence[Shard], done: set[int], class_names: Sequence[str]
) -> str | None:
    """Write `<output>/contact_sheet.png` with some finished images of each class.

    Returns:
        Its URI; None if no image is finished.
    """
    chosen = choose([shard for shard in shards if shard["shard_id"] in done])
    if not chosen:
        return None
    per_class = sum(label == chosen[0][0] for label, _, _ in chosen)
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        images = list(threads.map(lambda pick: _read_image(output, digest, *pick[1:]), chosen))
    # A multiple of `per_class`, so that no class is split over two rows.
    columns = per_class * max(1, _COLUMNS // per_class)
    sheet = contact_sheet(images, [class_names[label] for label, _, _ in chosen], columns)
    uri = storage.join(output, "contact_sheet.png")
    storage.write_bytes(uri, png(sheet))
    return uri


def choose(shards: Sequence[Shard]) -> list[tuple[int, int, int]]:
    """Choose images to show: the first few of every class, or of evenly spread classes if there are too many.

    Returns:
        (label, shard id, row of its part) of each image.
    """
    rows_of_class: dict[int, list[tuple[int, int]]] = {}
    for shard in shards:
        for row, label in enumerate(shard["labels"]):
            rows_of_class.setdefault(label, []).append((shard["shard_id"], row))
    labels = sorted(rows_of_class)
    if len(labels) > _MAX_PICTURES:
        labels = [labels[index * len(labels) // _MAX_PICTURES] for index in range(_MAX_PICTURES)]
    if not labels:
        return []
    fewest = min(len(rows_of_class[label]) for label in labels)
    per_class = max(1, min(_MAX_PER_CLASS, _MAX_PICTURES // len(labels), fewest))
    return [(label, *part_row) for label in labels for part_row in rows_of_class[label][:per_class]]


def _read_image(output: str, digest: str, shard_id: int, row: int) -> np.ndarray:
    content = storage.read_bytes(store.part_uri(output, shard_id, digest))
    image = pq.read_table(io.BytesIO(content), columns=["image"])["image"][row].as_py()
    return schema.decode_image(image["bytes"], image["path"])
