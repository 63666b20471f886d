"""Folders of Parquet files as Spark, Delta Lake and pandas leave them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import schema
from pipeline.dataset.sources import find_source
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
def test_what_spark_is_writing_is_told_by_its_name(name: str, unfinished: bool) -> None:
    assert is_unfinished(name) is unfinished


def test_rows_that_a_killed_spark_job_left_are_not_read_again(tmp_path: Path) -> None:
    write(tmp_path / "part-0.parquet")
    write(tmp_path / "_temporary" / "0" / "part-0.parquet")
    (tmp_path / "_SUCCESS").touch()
    assert find_source(str(tmp_path)).num_rows == 2


def test_tables_with_a_log_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "part-0.parquet")
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / "00000000000000000000.json").write_text("{}")
    with pytest.raises(DatasetError, match="is a table of Delta Lake: its files also hold deleted rows"):
        find_source(str(tmp_path))


def test_labels_in_the_names_of_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "label=3" / "part-0.parquet", {"image": pa.array([CODE])})
    with pytest.raises(DatasetError, match="partitioned by label: the folder 'label=3' has its label in its name"):
        find_source(str(tmp_path))


def test_files_without_rows_say_nothing_of_the_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": pa.nulls(0), "label": pa.nulls(0)})
    write(tmp_path / "b.parquet")
    assert find_source(str(tmp_path)).num_rows == 2
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(DatasetError, match="has no rows"):
        find_source(str(tmp_path))


def test_image_folders_may_be_called_as_they_like(tmp_path: Path) -> None:
    for label in range(2):
        (tmp_path / f"label={label}").mkdir()
        (tmp_path / f"label={label}" / "a.png").write_bytes(CODE)
    assert find_source(str(tmp_path)).class_names == ["label=0", "label=1"]


def test_labels_that_are_in_the_files_as_well_are_read(tmp_path: Path) -> None:
    write(tmp_path / "label=1" / "part-0.parquet")
    assert "label" in find_source(str(tmp_path)).columns
