import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.dataset import schema, store
from pipeline.dataset.damage import damaged_parts
from pipeline.dataset.discovery import find_source
from pipeline.dataset.index import (
    INDEX,
    complete_index,
    index_table,
    indexed_parts,
    num_retried,
    read_index,
    unindexed,
    write_index,
)
from pipeline.dataset.rows import read_unit
from pipeline.errors import DatasetError
from tests.conftest import make_manifest

DIGEST = "d" * 64


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A dataset of three parts with five images each, and its index."""
    output = str(tmp_path / "out")
    store.write_manifest(output, make_manifest(DIGEST))
    for shard_id in range(3):
        write_part(output, shard_id)
    parts = store.list_parts(output, DIGEST)
    write_index(output, DIGEST, complete_index(output, DIGEST, read_index(output, DIGEST), parts))
    return output


def write_part(output: str, shard_id: int, *, count: int = 5) -> None:
    pixels = np.random.default_rng(shard_id).integers(0, 256, (count, 32, 32, 3), np.uint8)
    ids = [f"{shard_id}-{number}" for number in range(count)]
    columns = {
        "image": schema.image_column(list(pixels), ids),
        "label": [shard_id, *[shard_id + 1] * (count - 1)],
        "keep_indices": [[0, 1]] * count,
        "image_id": ids,
        "shard_id": [shard_id] * count,
        "class_loss": [0.5] * count,
        "teacher_confidence": [0.25] * count,
        "teacher_prediction": [0] * count,
    }
    names = make_manifest(DIGEST)["class_names"]
    assert isinstance(names, list)
    facts = {"digest": DIGEST, "shard_id": str(shard_id)}
    table = pa.table(columns, schema=schema.part_schema(names, shard_id, metadata=facts))
    store.write_part(output, shard_id, DIGEST, schema.to_parquet(table))


def test_a_row_says_what_the_part_says(output: str) -> None:
    first = read_index(output, DIGEST).to_pylist()[0]
    size = Path(store.part_uri(output, 0, DIGEST)).stat().st_size
    assert (first["shard_id"], first["num_rows"], first["bytes"], first["labels"]) == (0, 5, size, [0, 1])
    assert (first["class_loss"], first["teacher_confidence"], first["worker"]) == (0.5, 0.25, None)


def test_with_the_index_readers_find_the_same_and_open_one_part(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(output, INDEX).rename(f"{output}.index")
    without = find_source(output)
    Path(f"{output}.index").rename(Path(output, INDEX))
    opened: list[str] = []
    whole = storage.open_file
    monkeypatch.setattr(storage, "open_file", lambda uri: opened.append(uri) or whole(uri))
    assert find_source(output) == without
    assert opened == [store.part_uri(output, 0, DIGEST)]


@pytest.mark.parametrize("damage", ["shorter", "another", "new"])
def test_a_part_that_is_not_as_the_index_says_is_opened(output: str, damage: str) -> None:
    part = Path(store.part_uri(output, 1, DIGEST))
    if damage == "shorter":
        part.write_bytes(part.read_bytes()[:-10])
    elif damage == "another":
        write_part(output, 1, count=4)
    else:
        write_part(output, 3)
    parts = store.list_parts(output, DIGEST)
    assert unindexed(output, DIGEST, parts) == [3 if damage == "new" else 1]
    if damage == "shorter":
        assert list(damaged_parts(output, DIGEST, [1])) == [1]
        with pytest.raises(DatasetError, match="part-00001"):
            find_source(output)
    else:
        assert find_source(output).num_rows == (14 if damage == "another" else 20)


@pytest.mark.parametrize("lasting", [False, True])
def test_a_part_that_cannot_be_read_for_a_moment_is_not_called_damaged(
    output: str, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    """The user is told to delete what is damaged: whole parts behind a store that throttles must not be."""
    whole, refused = storage.open_file, []

    def open_file(uri: str) -> Any:
        if lasting or not refused:
            refused.append(uri)
            raise OSError(errno.EBUSY, "SlowDown")
        return whole(uri)

    monkeypatch.setattr(storage, "open_file", open_file)
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0, 0.0))
    if lasting:
        with pytest.raises(DatasetError, match=r"cannot read .*part-00001.*SlowDown"):
            damaged_parts(output, DIGEST, [1])
    else:
        assert damaged_parts(output, DIGEST, [1]) == {}
    assert len(refused) == (3 if lasting else 1)


def test_a_row_without_its_part_means_nothing(output: str) -> None:
    Path(store.part_uri(output, 2, DIGEST)).unlink()
    assert find_source(output).num_rows == 10
    parts = store.list_parts(output, DIGEST)
    assert sorted(indexed_parts(output, DIGEST, parts)) == [0, 1]


def test_an_index_that_cannot_be_used_is_told_and_costs_time_alone(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = find_source(output)
    parquet = Path(output, INDEX).read_bytes()
    for content in (b"not Parquet", parquet[:-3], json.dumps({}).encode()):
        Path(output, INDEX).write_bytes(content)
        assert find_source(output) == whole
        assert "index.parquet' is not used, every part is opened instead" in capsys.readouterr().err
    write_index(output, "e" * 64, index_table([{"shard_id": 0, "num_rows": 5}]))
    assert find_source(output) == whole
    assert "it belongs to another dataset" in capsys.readouterr().err


@pytest.fixture
def old_index(output: str) -> pa.Table:
    """An index as it was written before it had attempts, node, GPU and device; of the parts 0 and 1."""
    whole = index_table([{**row, "seconds": 1.5, "worker": "a"} for row in read_index(output, DIGEST).to_pylist()[:2]])
    old = whole.select([name for name in whole.column_names if name not in ("attempts", "node", "gpu", "device")])
    write_index(output, DIGEST, old)
    assert pq.read_schema(Path(output, INDEX)).names == old.column_names
    return old


def test_an_index_of_an_earlier_version_is_used_and_completed(
    output: str, old_index: pa.Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    whole = storage.open_file
    monkeypatch.setattr(storage, "open_file", lambda uri: opened.append(uri) or whole(uri))
    parts = store.list_parts(output, DIGEST)
    table = complete_index(output, DIGEST, read_index(output, DIGEST), parts)
    # Part 2 is not in it.
    assert opened == [store.part_uri(output, 2, DIGEST)]
    assert table.select(old_index.column_names).slice(0, 2).equals(old_index)
    assert [table[name].null_count for name in ("attempts", "node", "gpu", "device")] == [3] * 4
    assert num_retried(table) == 0
    made = index_table([{**table.to_pylist()[1], "attempts": 2, "node": "node-8 (12345678)", "gpu": "0"}])
    write_index(output, DIGEST, complete_index(output, DIGEST, pa.concat_tables([table, made]), parts))
    table = read_index(output, DIGEST)
    assert (table["attempts"].to_pylist(), num_retried(table)) == ([None, 2, None], 1)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("old_index")
def test_an_index_without_a_column_that_it_always_had_is_not_used(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_index(output, DIGEST, read_index(output, DIGEST).drop_columns(["worker"]))
    assert len(read_index(output, DIGEST)) == 0
    assert "every part is opened instead: DatasetError: it has no column 'worker'" in capsys.readouterr().err


def test_an_index_that_states_other_rows_than_a_part_has_is_found_out(output: str) -> None:
    parts = store.list_parts(output, DIGEST)
    rows = [{**row, "num_rows": 7} for row in read_index(output, DIGEST).to_pylist()]
    write_index(output, DIGEST, index_table(rows))
    source = find_source(output)
    with pytest.raises(DatasetError, match=r"part-00001.* has 5 rows and not 7"):
        list(read_unit(source, source.units[1]))
    # More than the file has room for.
    rows = [{**row, "num_rows": 2**31 - 1} for row in rows]
    write_index(output, DIGEST, index_table(rows))
    assert unindexed(output, DIGEST, parts) == [0, 1, 2]


def test_of_several_rows_the_last_counts(output: str) -> None:
    parts = store.list_parts(output, DIGEST)
    old = index_table([{**row, "bytes": 1} for row in read_index(output, DIGEST).to_pylist()])
    both = pa.concat_tables([old, read_index(output, DIGEST)])
    assert len(complete_index(output, DIGEST, both, parts)) == 3
    write_index(output, DIGEST, both)
    assert unindexed(output, DIGEST, parts) == []
