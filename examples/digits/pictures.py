"""Pictures of the demo's images."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import schema
from pipeline.report.sheet import contact_sheet, png

# The first images of every class are shown.
_PER_CLASS = 2


def draw_images(images: Mapping[str, str]) -> bytes:
    """One contact sheet of all sets: classes in columns, the first images of each, set below set."""
    pictures, captions = [], []
    for data, uri in images.items():
        seen = _first_of_each_class(uri)
        for number in range(_PER_CLASS):
            pictures += [seen[label][number] for label in sorted(seen)]
            captions += [f"{data} {label}" for label in sorted(seen)]
    return png(contact_sheet(pictures, captions, len(pictures) // (_PER_CLASS * len(images)), cell=64))


def _first_of_each_class(uri: str) -> dict[int, list[np.ndarray]]:
    seen: dict[int, list[np.ndarray]] = {}
    for row in _rows(uri):
        chosen = seen.setdefault(row["label"], [])
        if len(chosen) < _PER_CLASS:
            chosen.append(schema.decode_image(row["image"]["bytes"], row["image"]["path"]))
    return seen


def _rows(uri: str) -> list[dict[str, Any]]:
    """Image and label of every row of a Parquet file, or of a synthetic dataset's parts."""
    files = [uri]
    if not uri.endswith(".parquet"):
        folder = storage.join(uri, "data")
        files = [storage.join(folder, name) for name in storage.list_files(folder, ".parquet")]
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(file)), columns=["image", "label"]) for file in files]
    return [row for table in tables for row in table.to_pylist()]
