"""Rows of one's own making, in the batches that Ray Data makes of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest

from pipeline.errors import DatasetError
from pipeline.synthesis.rows import RowReader, further_column

ROW = {"shard_id": 3, "labels": [1, 0], "image_ids": ["a", "b"]}


def as_lists(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def as_arrays(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """As Ray Data does: lists of one length as one array, of several as an array of arrays."""
    columns = {}
    for name, values in as_lists(rows).items():
        lists = isinstance(values[0], list)
        columns[name] = np.empty(len(values), object) if lists else np.array(values)
        if lists:
            for place, value in enumerate(values):
                columns[name][place] = np.array(value)
    return columns


def as_frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    return pandas.DataFrame(as_arrays(rows))


FORMATS = [as_lists, as_arrays, as_frame, pa.Table.from_pylist]


def read(*rows: dict[str, Any]) -> Any:
    return RowReader(10).read(as_lists(list(rows)))


@pytest.mark.parametrize("batch", FORMATS)
def test_every_batch_format_and_size(batch: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = [
        {**ROW, "prompt": "p", "weight": [0.5, 0.25], "notes": ["x", None]},
        {"shard_id": 4, "labels": [9], "image_ids": ["c"], "prompt": "q", "weight": [2.0], "notes": ["y"]},
    ]
    first, second = RowReader(10).read(batch(rows))
    assert (first.shard_id, first.labels, first.image_ids) == (3, [1, 0], ["a", "b"])
    assert (second.shard_id, second.labels, second.image_ids) == (4, [9], ["c"])
    passed_on = {name: further_column(first, name).to_pylist() for name in first.further}
    assert passed_on == {"prompt": ["p", "p"], "weight": [0.5, 0.25], "notes": ["x", None]}
    assert further_column(second, "weight").to_pylist() == [2.0]


def test_whole_numbers_that_arrow_made_floats_of_are_labels() -> None:
    (row,) = RowReader(10).read({**as_lists([ROW]), "labels": [np.array([1.0, 0.0])]})
    assert row.labels == [1, 0]


def test_tensors_and_structs_are_passed_on() -> None:
    (row,) = read({**ROW, "boxes": np.arange(8).reshape(2, 2, 2), "origin": {"camera": 1}})
    assert further_column(row, "boxes").to_pylist() == np.arange(8).reshape(2, 2, 2).tolist()
    assert further_column(row, "origin").to_pylist() == [{"camera": 1}] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [1, 1.9]}, r"shard 3 has the label 1\.9: labels are whole numbers"),
        ({"labels": np.array([1, 1.9])}, r"shard 3 has the label 1\.9"),
        ({"labels": [1, True]}, "shard 3 has the label True"),
        ({"labels": np.array([True, False])}, "shard 3 has the label True"),
        ({"labels": ["1", "0"]}, "shard 3 has the label '1'"),
        ({"labels": [1, float("nan")]}, "shard 3 has the label nan"),
        ({"labels": [1, None]}, "shard 3 has the label None"),
        ({"labels": [[1], [0]]}, r"shard 3 has the label \[1\]"),
        ({"labels": [1, 10]}, "shard 3 has the label 10: labels start at 0, the teacher has 10 classes"),
        ({"labels": [-1, 1]}, "shard 3 has the label -1: labels start at 0"),
        ({"labels": 1}, "shard 3 has 1 as labels: it must be a list"),
        ({"labels": None}, "shard 3 has None as labels"),
        ({"labels": [1]}, "shard 3 has 1 labels and 2 image_ids"),
        ({"labels": [], "image_ids": []}, "shard 3 is empty"),
        ({"image_ids": "ab"}, "shard 3 has 'ab' as image_ids: it must be a list"),
        ({"image_ids": ["a", "a"]}, "shard 3 has the image id 'a' twice"),
        ({"image_ids": ["a", "../b"]}, r"shard 3 has the image id '\.\./b'.*slashes"),
        ({"image_ids": ["a", "b\\c"]}, "shard 3 has the image id"),
        ({"image_ids": ["a", "b\n"]}, "shard 3 has the image id"),
        ({"image_ids": ["a", ""]}, "shard 3 has the image id ''"),
        ({"image_ids": ["a", 7]}, "shard 3 has the image id 7"),
        ({"shard_id": -1}, "shard_id is -1: it must be a whole number from 0"),
        ({"shard_id": 2.5}, r"shard_id is 2\.5"),
        ({"shard_id": True}, "shard_id is True"),
        ({"shard_id": "3"}, "shard_id is '3'"),
        ({"shard_id": None}, "shard_id is None"),
        ({"shard_id": 2**31}, "shard_id is 2147483648"),
        ({"weight": [1, 2, 3]}, "shard 3 has 3 entries in the column 'weight' and 2 images"),
        ({"label": 1}, "must not have the column 'label'"),
        ({"class_loss": [1, 2]}, "must not have the column 'class_loss'"),
    ],
)
def test_an_impossible_row_is_named_with_its_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read({**ROW, **changes})


@pytest.mark.parametrize("name", ["shard_id", "labels", "image_ids"])
@pytest.mark.parametrize("batch", FORMATS)
def test_a_missing_column_is_named(name: str, batch: Callable[[list[dict[str, Any]]], Any]) -> None:
    with pytest.raises(DatasetError, match=f"need the columns shard_id, labels, image_ids: '{name}' is not in"):
        RowReader(10).read(batch([{key: value for key, value in ROW.items() if key != name}]))


def test_a_batch_of_no_known_kind() -> None:
    with pytest.raises(DatasetError, match="not list"):
        RowReader(10).read([ROW])


def test_values_without_a_common_type_cannot_be_passed_on() -> None:
    (row,) = read({**ROW, "mixed": [1, "x"]})
    with pytest.raises(DatasetError, match="shard 3: the column 'mixed' cannot be passed on"):
        further_column(row, "mixed")


def test_ids_come_once() -> None:
    other = {"shard_id": 4, "labels": [1], "image_ids": ["c"]}
    with pytest.raises(DatasetError, match="shard_id 3 comes more than once"):
        read(ROW, {**other, "shard_id": 3})
    with pytest.raises(DatasetError, match="image id 'b' is in the shards 3 and 4"):
        read(ROW, {**other, "image_ids": ["b"]})
    with pytest.raises(DatasetError, match="shard_id 3 comes more than once"):
        read(ROW, ROW)


def test_what_ray_runs_again_may_come_again_but_not_changed() -> None:
    reader = RowReader(10, again=True)
    reader.read(as_lists([ROW]))
    assert reader.read(as_lists([ROW]))[0].shard_id == 3
    with pytest.raises(DatasetError, match="shard_id 3 comes more than once"):
        reader.read(as_lists([{**ROW, "labels": [2, 2]}]))
    with pytest.raises(DatasetError, match="shard_id 3 comes more than once"):
        reader.read(as_lists([ROW, ROW]))
