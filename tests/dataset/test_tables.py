"""Folders of Parquet files as Spark, Delta Lake and pandas leave them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.dataset import schema
from pipeline.dataset.discovery import find_source
from pipeline.dataset.tables import is_unfinished
from pipeline.errors import DatasetError

CODE = schema.encode_image(np.zeros((8, 8, 3), np.uint8))


def write(file: Path, columns: dict[str, pa.Array] | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"image": pa.array([CODE] * 2), "label": pa.array([0, 1])}), file)


@pytest.mark.parametrize(
    ("name", "unfinished"),
    [
        ("_temporary/0/task/part-0.parquet", True),
        ("day=1/_part.parquet", True),
        ("_day=1/part.parquet", False),
        ("part_0.parquet", False),
    ],
)
def test_what_spark_is_writing_is_reported_by_its_name(name: str, unfinished: bool) -> None:
    assert is_unfinished(name) is unfinished


def test_rows_that_a_killed_spark_job_left_are_not_read_again(tmp_path: Path) -> None:
    write(tmp_path / "part-0.parquet")
    write(tmp_path / "_temporary" / "0" / "part-0.parquet")
    (tmp_path / "_SUCCESS").touch()
    assert find_source(str(tmp_path)).num_rows == 2


@pytest.mark.parametrize(
    ("system", "log"),
    [
        ("Delta Lake", "_delta_log/00000000000000000000.json"),
        ("Delta Lake", "_delta_log/_last_checkpoint"),
        ("Hudi", ".hoodie/hoodie.properties"),
        ("Hudi", "day=1/.hoodie_partition_metadata"),
        ("Iceberg", "metadata/v1.metadata.json"),
        ("Iceberg", "metadata/00001-0a1b.gz.metadata.json"),
        ("Iceberg", "metadata/snap-1-1-0a1b.avro"),
        ("Paimon", "snapshot/snapshot-1"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_tables_with_a_log_are_refused(tmp_path: Path, system: str, log: str, remote: bool) -> None:
    write(tmp_path / "day=1" / "part-0.parquet")
    (tmp_path / log).parent.mkdir(exist_ok=True)
    (tmp_path / log).write_text("{}")
    uri = str(tmp_path)
    if remote:
        uri = f"memory://{tmp_path.name}-{system}"
        storage.upload_folder(tmp_path, uri)
    with pytest.raises(DatasetError, match=f"is a table of {system}: its files also hold deleted rows"):
        find_source(uri)


def test_labels_in_the_names_of_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "label=3" / "part-0.parquet", {"image": pa.array([CODE])})
    with pytest.raises(DatasetError, match="partitioned by label: the folder 'label=3' has the label in its name"):
        find_source(str(tmp_path))


def test_files_without_rows_say_nothing_of_the_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": pa.nulls(0), "label": pa.nulls(0)})
    write(tmp_path / "b.parquet")
    assert find_source(str(tmp_path)).num_rows == 2
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(DatasetError, match="has no rows"):
        find_source(str(tmp_path))


@pytest.mark.parametrize("struct", [True, False])
def test_rows_without_an_image_are_refused_before_any_is_read(tmp_path: Path, struct: bool) -> None:
    codes = [CODE, CODE, CODE, None, CODE]
    rows = [None if code is None else {"bytes": code, "path": None} for code in codes]
    images = pa.array(rows, schema.IMAGE) if struct else pa.array(codes)
    pq.write_table(pa.table({"label": [0] * 5, "image": images}), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(DatasetError, match=r"a\.parquet' has no bytes of the image in 1 of the rows 2 to 3: leave"):
        find_source(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"PK\x03\x04", "is a zip archive: unpack it"),
        (b"\x89PNG", "is an image, not a Parquet file"),
        (b"PAR1 and no more", "is not a whole Parquet file: "),
        (b"\x81\xff\0", "is not a whole Parquet file: "),
    ],
)
def test_what_lies_under_the_name_of_a_parquet_file_is_reported(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    for uri in (tmp_path, tmp_path / "a.parquet"):
        with pytest.raises(DatasetError, match=rf"a\.parquet' {reason}"):
            find_source(str(uri))


def test_a_pointer_of_git_lfs_under_the_name_of_a_parquet_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DatasetError, match=r"a\.parquet' is a Git LFS pointer, not the file itself: run `git lfs"):
        find_source(str(tmp_path / "a.parquet"))
    with pytest.raises(DatasetError, match=r"1 of 1 files are Git LFS pointers, .* such as 'a\.parquet': run `git lfs"):
        find_source(str(tmp_path))


def test_image_folders_may_be_called_as_they_like(tmp_path: Path) -> None:
    for label in range(2):
        (tmp_path / f"label={label}").mkdir()
        (tmp_path / f"label={label}" / "a.png").write_bytes(CODE)
    assert find_source(str(tmp_path)).class_names == ["label=0", "label=1"]


def test_labels_that_are_in_the_files_as_well_are_read(tmp_path: Path) -> None:
    write(tmp_path / "label=1" / "part-0.parquet")
    assert "label" in find_source(str(tmp_path)).columns


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("shard-000000.tar", "1 .tar: unpack the archives"),
        ("data-00000-of-00001.arrow", "1 .arrow: write it as Parquet"),
        ("x.npz", "1 .npz$"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=f"neither Parquet files nor images are in it: it holds 1 file, {remedy}"):
        find_source(str(tmp_path))
