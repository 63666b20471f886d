"""Images that keep different numbers of patches, in memory and as a file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset import schema
from pipeline.distillation.batches import Images
from pipeline.models import LoadedModel, ModelConfig, load_model

NAMES = [f"class {letter}" for letter in "abcdefghij"]
NUM_PATCHES = 16
KEPT = (16, 7, 7, 4)  # patches that image 0, 1, 2, ... keeps, over and over


@pytest.fixture
def teacher(tiny_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))


def kept_patches(row: int) -> list[int]:
    order = np.random.default_rng(row).permutation(NUM_PATCHES)
    return sorted(order[: KEPT[row % len(KEPT)]].tolist())


def make_images(count: int, *, seed: int = 0, ragged: bool = True) -> Images:
    """Normalized noise on the tiny teacher's grid; image `i` has label `i % 10`."""
    random = np.random.default_rng(seed)
    keep = [kept_patches(row) if ragged else list(range(NUM_PATCHES)) for row in range(count)]
    padded = np.zeros((count, max(map(len, keep), default=0)), np.int64)
    for row, indices in enumerate(keep):
        padded[row, : len(indices)] = indices
    return Images(
        random.standard_normal((count, 3, 32, 32)).astype(np.float32),
        np.arange(count, dtype=np.int64) % 10,
        padded,
        np.array([len(indices) for indices in keep], np.int64),
        [f"image-{row:05d}" for row in range(count)],
    )


def write_ragged(path: Path, count: int, *, seed: int = 0, rows_a_group: int = 5, labels: bool = True) -> list[str]:
    """A Parquet file as synthesis makes them, sorted by class; returns the image ids."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    ids = [f"{path.stem}-{row:05d}" for row in range(count)]
    columns = {
        "image": schema.image_column(list(pixels), ids),
        "label": [row * 10 // count for row in range(count)],
        "keep_indices": [kept_patches(row) for row in range(count)],
        "image_id": ids,
    }
    if not labels:
        del columns["label"]
    table = pa.table(columns, schema=schema.arrow_schema(NAMES, columns=list(columns)))
    path.write_bytes(schema.to_parquet(table, row_group_size=rows_a_group))
    return ids
