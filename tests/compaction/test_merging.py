from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.compaction.merging import Merger
from pipeline.compaction.plan import plan_compaction
from pipeline.dataset import store
from pipeline.dataset.schema import class_names_of, names_digest, names_digest_of, to_parquet
from pipeline.errors import DatasetError
from tests.compaction.conftest import DIGEST, make_config, write_part

SOME = range(3, 6)


@pytest.fixture
def merger(dataset: str, tmp_path: Path) -> Merger:
    return plan_compaction(make_config(dataset, tmp_path / "compact")).merger


def part_of(merger: Merger, shard_id: int) -> Path:
    return Path(store.part_uri(merger.images, shard_id, DIGEST))


def test_each_part_becomes_a_row_group_of_the_same_rows(merger: Merger) -> None:
    merged = merger.merge(SOME)
    parts = [pq.ParquetFile(part_of(merger, shard_id)) for shard_id in SOME]
    file = pq.ParquetFile(merger.uri(SOME))
    assert Path(merger.uri(SOME)).name == "part-00003-00005-01234567.parquet"
    assert [file.read_row_group(number) for number in range(3)] == [part.read() for part in parts]
    assert merged.num_rows == [3, 3, 3]
    assert merged.row_group_bytes == [part.metadata.row_group(0).total_byte_size for part in parts]
    assert Path(merger.uri(SOME)).stat().st_size < sum(part_of(merger, shard_id).stat().st_size for shard_id in SOME)


def test_what_a_part_says_of_itself_is_kept(merger: Merger) -> None:
    merger.merge(SOME)
    metadata = pq.read_metadata(merger.uri(SOME)).metadata
    assert metadata[b"parts"] == b'[{"shard_id": 3}, {"shard_id": 4, "halvings": "[[3, 2]]"}, {"shard_id": 5}]'
    assert (metadata[b"digest"], metadata[b"schema_version"]) == (DIGEST.encode(), b"2")
    assert class_names_of(metadata) == tuple(merger.class_names)
    assert b"shard_id" not in metadata


def test_long_class_names_stand_in_the_first_file_alone(merger: Merger) -> None:
    long = replace(merger, class_names=["x" * 5000, *merger.class_names[1:]])
    for shard_ids, names in ((range(2), tuple(long.class_names)), (SOME, None)):
        long.merge(shard_ids)
        metadata = pq.read_metadata(long.uri(shard_ids)).metadata
        assert class_names_of(metadata) == names
        assert names_digest_of(metadata) == names_digest(long.class_names)


def test_a_dataset_of_version_1_stays_one(merger: Merger) -> None:
    old = replace(merger, schema_version=1, class_names=["x" * 5000, *merger.class_names[1:]])
    old.merge(SOME)
    metadata = pq.read_metadata(old.uri(SOME)).metadata
    assert (metadata[b"schema_version"], class_names_of(metadata)) == (b"1", tuple(old.class_names))
    assert b"class_names_sha256" not in metadata


def test_a_part_by_itself_stays_as_it_is(merger: Merger) -> None:
    merger.merge(range(4, 5))
    assert Path(merger.uri(range(4, 5))).read_bytes() == part_of(merger, 4).read_bytes()


def test_a_file_that_is_there_is_not_written_again(merger: Merger) -> None:
    first, before = merger.merge(SOME), Path(merger.uri(SOME)).stat()
    part_of(merger, 4).unlink()
    again = merger.merge(SOME)
    assert (first.made, again.made) == (True, False)
    assert (again.num_rows, again.row_group_bytes) == (first.num_rows, first.row_group_bytes)
    assert Path(merger.uri(SOME)).stat() == before


def test_another_file_under_the_name_of_a_merged_one_is_refused(merger: Merger) -> None:
    storage.write_bytes(merger.uri(SOME), part_of(merger, 3).read_bytes())
    with pytest.raises(DatasetError, match=r"00003-00005.* does not hold the parts that its name says: delete it"):
        merger.merge(SOME)


def change_a_bit(part: Path) -> None:
    """Damage within an image, of which neither the size of the file nor Parquet knows."""
    content = bytearray(part.read_bytes())
    content[1000] ^= 1
    part.write_bytes(content)


def cut_out(part: Path) -> None:
    """Damage between the images and the footer."""
    content = bytearray(part.read_bytes())
    content[9300:9900] = bytes(600)
    part.write_bytes(content)


def swap(part: Path) -> None:
    part.write_bytes(part.with_name(store.part_name(1, DIGEST)).read_bytes())


def drop_column(part: Path) -> None:
    table = pq.ParquetFile(part).read()
    part.write_bytes(to_parquet(table.drop_columns(["class_loss"])))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_a_bit, "is damaged, delete it and run the synthesis again: image '4-0' is no whole PNG file"),
        (cut_out, "is damaged, delete it and run the synthesis again"),
        (swap, "is not the part of shard 4 of this dataset"),
        (drop_column, "has other columns than a part has"),
        (Path.unlink, "is not there, on .*: do all machines see it, or was it deleted"),
    ],
)
def test_a_damaged_part_is_named_and_nothing_is_left(
    damage: Callable[[Path], None], message: str, merger: Merger
) -> None:
    damage(part_of(merger, 4))
    with pytest.raises(DatasetError, match=rf"part-00004-01234567.parquet' {message}"):
        merger.merge(SOME)
    assert [path for path in Path(merger.output).rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_nothing_and_may_be_tried_again(merger: Merger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            merger.merge(SOME)
    assert [path for path in Path(merger.output).rglob("*") if path.is_file()] == []
    assert merger.merge(SOME).made


def test_storage_that_fails_for_a_moment_is_read_again(merger: Merger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0, 0.0))
    whole, opened = storage.open_file, Counter[str]()

    def open_file(uri: str) -> Any:
        opened[uri] += 1
        if opened[uri] < 3:
            raise OSError("the store is away")
        return whole(uri)

    monkeypatch.setattr(storage, "open_file", open_file)
    assert merger.merge(SOME).made
    assert list(opened.values()) == [3, 3, 3]


def test_one_part_is_in_memory_at_a_time(merger: Merger, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard_id in range(7):
        write_part(merger.images, shard_id, side=600)
    sizes: list[int] = []
    whole: Any = pq.ParquetWriter.write_table

    def write(self: pq.ParquetWriter, table: Any, **options: Any) -> None:
        whole(self, table, **options)
        sizes.append(pa.total_allocated_bytes())

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write)
    merger.merge(range(7))
    assert max(sizes) < 2 * min(sizes)
