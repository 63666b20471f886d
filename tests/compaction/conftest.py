"""A synthetic dataset of noise, as a synthesis leaves it, and what it holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.compaction import CompactionConfig
from pipeline.dataset import schema, store
from pipeline.dataset.discovery import find_source
from pipeline.dataset.index import complete_index, read_index, write_index
from pipeline.dataset.own_card import write_card
from pipeline.dataset.rows import read_unit
from tests.conftest import make_manifest

DIGEST = "0123456789abcdef" * 4
NUM_SHARDS, PER_SHARD = 7, 3
# A part takes about 14 kB.
TWO_PARTS_MB = 0.04


def write_part(output: str, shard_id: int, *, side: int = 32, **facts: str) -> None:
    random = np.random.default_rng(shard_id)
    ids = [f"{shard_id}-{number}" for number in range(PER_SHARD)]
    columns = {
        "image": schema.image_column(list(random.integers(0, 256, (PER_SHARD, side, side, 3), np.uint8)), ids),
        "label": [(shard_id + number) % 10 for number in range(PER_SHARD)],
        "keep_indices": [sorted(random.permutation(16)[: 4 + number].tolist()) for number in range(PER_SHARD)],
        "image_id": ids,
        "shard_id": [shard_id] * PER_SHARD,
        "class_loss": random.random(PER_SHARD),
        "teacher_confidence": random.random(PER_SHARD),
        "teacher_prediction": [shard_id % 10] * PER_SHARD,
    }
    names: Any = make_manifest(DIGEST)["class_names"]
    own = {"digest": DIGEST, "shard_id": str(shard_id), "schema_version": "2", **facts}
    table = pa.table(columns, schema=schema.part_schema(names, shard_id, metadata=own))
    store.write_part(output, shard_id, DIGEST, schema.to_parquet(table))


def index_dataset(output: str) -> None:
    parts = store.list_parts(output, DIGEST)
    write_index(output, DIGEST, complete_index(output, DIGEST, read_index(output, DIGEST), parts))


def make_dataset(output: str, *, without: tuple[int, ...] = ()) -> str:
    """Write a dataset, but for some of its shards; those after the first of them failed."""
    changes: dict[str, Any] = {"num_shards": NUM_SHARDS, "num_images": NUM_SHARDS * PER_SHARD, "schema_version": 2}
    manifest = make_manifest(DIGEST, **changes)
    store.write_manifest(output, manifest)
    write_card(output, manifest)
    for shard_id in range(NUM_SHARDS):
        if shard_id not in without:
            facts: dict[str, Any] = {"halvings": "[[3, 2]]"} if shard_id == 4 else {}
            write_part(output, shard_id, **facts)
    for shard_id in without[1:]:
        store.write_failure(output, shard_id, {"error": "NonFiniteError", "reason": "tv_l2 is not finite"})
    index_dataset(output)
    return output


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return make_dataset(str(tmp_path / "dataset"))


def make_config(images: str, output: Path | str, **changes: Any) -> CompactionConfig:
    return CompactionConfig(images=images, output=str(output), **{"file_mb": TWO_PARTS_MB, **changes})


def rows_of(uri: str) -> list[dict[str, Any]]:
    source = find_source(uri)
    return [row for unit in source.units for table in read_unit(source, unit) for row in table.to_pylist()]


def bytes_of(folder: Path | str) -> dict[str, bytes]:
    """Everything in a folder, by name."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
