"""The images of a synthetic dataset that are shown, and their contact sheet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from pipeline.dataset import schema
from pipeline.dataset.sample import evenly, read_parts
from pipeline.report.sheet import contact_sheet, png
from pipeline.synthesis.shards import ShardPlan

_MAX_PICTURES = 96
_MAX_PER_CLASS = 8
_COLUMNS = 10
# Columns that an image is shown from.
COLUMNS_SHOWN = ("image", "label", "keep_indices", "teacher_confidence")


@dataclass(frozen=True)
class PreviewImage:
    """An image to show.

    Attributes:
        pixels: uint8 [H, W, C], the stored image.
        label: the class that it was inverted for.
        keep_indices: indices of its kept patches, row by row.
        confidence: probability, between 0 and 1, that the teacher gives to its class.
    """

    pixels: np.ndarray
    label: int
    keep_indices: list[int]
    confidence: float


def read_preview(output: str, digest: str, shards: ShardPlan, done: set[int]) -> list[PreviewImage]:
    """Read the images that `choose` picks of the finished shards, in its order.

    Raises:
        DatasetError: a part cannot be read.
    """
    chosen = choose(shards, done)
    if not chosen:
        return []
    rows_of_shard: dict[int, list[int]] = {}
    for _, shard_id, row in chosen:
        rows_of_shard.setdefault(shard_id, []).append(row)
    table = read_parts(output, digest, rows_of_shard, COLUMNS_SHOWN)
    places = [(shard_id, row) for shard_id, rows in rows_of_shard.items() for row in rows]
    position = {place: number for number, place in enumerate(places)}
    order = [position[shard_id, row] for _, shard_id, row in chosen]
    return [decode_preview(row) for row in table.take(order).to_pylist()]


def decode_preview(row: dict[str, Any]) -> PreviewImage:
    """Decode an image's row of `COLUMNS_SHOWN`.

    Raises:
        DatasetError: it cannot be decoded.
    """
    pixels = schema.decode_image(row["image"]["bytes"], row["image"]["path"])
    return PreviewImage(pixels, row["label"], row["keep_indices"], row["teacher_confidence"])


def draw_contact_sheet(shown: Sequence[PreviewImage], class_names: Sequence[str]) -> bytes:
    """Return a PNG file with one or more images, each with the name of its class."""
    per_class = sum(image.label == shown[0].label for image in shown)
    # A multiple of `per_class`, so that no class is split over two rows.
    columns = per_class * max(1, _COLUMNS // per_class)
    labels = [class_names[image.label] for image in shown]
    return png(contact_sheet([image.pixels for image in shown], labels, columns))


def choose(shards: ShardPlan, done: set[int]) -> list[tuple[int, int, int]]:
    """Choose images to show: the first few of every class, or of evenly spread classes if there are too many.

    Args:
        shards: shards of the dataset.
        done: ids of the shards that have a part.

    Returns:
        (label, shard id, row of its part) of each image.
    """
    first_few = {label: list(_first_few(shards, index, done)) for index, label in enumerate(shards.classes)}
    labels = evenly(sorted(label for label, places in first_few.items() if places), _MAX_PICTURES)
    if not labels:
        return []
    fewest = min(len(first_few[label]) for label in labels)
    per_class = max(1, min(_MAX_PICTURES // len(labels), fewest))
    return [(label, *place) for label in labels for place in first_few[label][:per_class]]


def _first_few(shards: ShardPlan, index: int, done: set[int]) -> Iterator[tuple[int, int]]:
    """Yield shard id and row of the first images of a class that are done, as many as may be shown of one."""
    return islice((place for place in shards.places_of(index) if place[0] in done), _MAX_PER_CLASS)
