"""Rows of one's own making, in the batches that Ray Data makes of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
import torch

from pipeline.errors import DatasetError
from pipeline.synthesis.rows import RowReader, columns_of

ROW = {"shard_id": 3, "labels": [1, 0], "image_ids": ["a", "b"]}


def as_lists(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def as_arrays(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Convert as Ray Data does: lists of one length to one array, of several lengths to an array of arrays."""
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
    passed_on = {name: values.to_pylist() for name, values in first.further.items()}
    assert passed_on == {"prompt": ["p", "p"], "weight": [0.5, 0.25], "notes": ["x", None]}
    assert second.further["weight"].to_pylist() == [2.0]


def test_whole_numbers_that_arrow_made_floats_of_are_labels() -> None:
    (row,) = RowReader(10).read({**as_lists([ROW]), "labels": [np.array([1.0, 0.0])]})
    assert row.labels == [1, 0]


def test_tensors_and_structs_are_passed_on() -> None:
    (row,) = read({**ROW, "boxes": np.arange(8).reshape(2, 2, 2), "origin": {"camera": 1}})
    assert row.further["boxes"].to_pylist() == np.arange(8).reshape(2, 2, 2).tolist()
    assert row.further["origin"].to_pylist() == [{"camera": 1}] * 2


@pytest.mark.parametrize(
    "like_a_list",
    [tuple, np.array, pandas.Series, pa.array, pa.chunked_array, torch.tensor, lambda values: range(2)],
    ids=["tuple", "numpy", "pandas", "arrow", "chunked", "torch", "range"],
)
def test_anything_like_a_list_is_one(like_a_list: Callable[[Any], Any]) -> None:
    values = [[0, 1]] if like_a_list is pa.chunked_array else [0, 1]
    (row,) = read({**ROW, "labels": like_a_list(values), "place": like_a_list(values)})
    assert row.labels == [0, 1]
    assert row.further["place"].to_pylist() == [0, 1]
    (row,) = read({**ROW, "labels": [np.int32(1), torch.tensor(0)], "shard_id": torch.tensor(3)})
    assert (row.shard_id, row.labels) == (3, [1, 0])


@pytest.mark.parametrize("null", [None, pandas.NaT, pandas.NA, np.datetime64("NaT")])
def test_what_is_missing_stays_missing(null: Any) -> None:
    (row,) = read({**ROW, "note": null, "notes": ["x", null], "time": [pandas.Timestamp("2026-01-02"), null]})
    assert row.further["note"].to_pylist() == [None, None]
    assert row.further["notes"].to_pylist() == ["x", None]
    assert row.further["time"].is_null().to_pylist() == [False, True]


def test_nan_is_a_number_and_text_that_pandas_misses() -> None:
    (row,) = read({**ROW, "weight": [0.5, float("nan")], "note": ["x", float("nan")]})
    assert row.further["weight"].null_count == 0
    assert row.further["note"].to_pylist() == ["x", None]


def test_a_column_of_arrow_keeps_its_type_in_every_row() -> None:
    types = {
        "note": pa.string(),
        "score": pa.list_(pa.float32()),
        "time": pa.timestamp("ns"),
        "kind": pa.dictionary(pa.int32(), pa.string()),
        "pair": pa.list_(pa.int16(), 2),
        "place": pa.struct({"x": pa.int8()}),
    }
    columns = {
        "shard_id": [3, 4],
        "labels": [[1, 0], [2, 3]],
        "image_ids": [["a", "b"], ["c", "d"]],
        "note": pa.array([None, "y"], types["note"]),
        "score": pa.array([None, [0.5, None]], types["score"]),
        "time": pa.array([None, np.datetime64(5, "ns")], types["time"]),
        "kind": pa.array([None, "k"]).dictionary_encode(),
        "pair": pa.array([None, [1, 2]], types["pair"]),
        "place": pa.array([None, {"x": 1}], types["place"]),
    }
    first, second = RowReader(10).read(pa.table(columns))
    entries = {name: of.value_type if pa.types.is_nested(of) and name != "place" else of for name, of in types.items()}
    for row in (first, second):
        assert {name: values.type for name, values in row.further.items()} == entries
    assert all(values.null_count == 2 for values in first.further.values())
    assert second.further["score"].to_pylist() == [0.5, None]
    assert second.further["time"].cast(pa.int64()).to_pylist() == [5, 5]
    assert second.further["place"].to_pylist() == [{"x": 1}] * 2


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"^the columns of a batch of shards differ in length: \{'shard_id': 1, .*$"):
        RowReader(10).read({**as_lists([ROW]), "labels": [[1], [0]]})
    with pytest.raises(DatasetError, match=r"^the column 'shard_id' of a batch of shards is 3: give a list .*$"):
        RowReader(10).read(ROW)


class Odd:
    def __repr__(self) -> str:
        return "Odd(\n" + "    1,\n" * 99 + ")"


def test_long_values_are_shown_on_one_short_line() -> None:
    for changes in ({"labels": Odd()}, {"labels": [1, Odd()]}, {"image_ids": ["a", Odd()]}, {"shard_id": Odd()}):
        with pytest.raises(DatasetError, match=r"^.*Odd\( 1, 1, .*\.\.\..*$") as raised:
            read({**ROW, **changes})
        assert len(str(raised.value)) < 200


def test_rows_with_their_own_columns_become_columns() -> None:
    assert columns_of([{"a": 1}, {"a": 2, "b": 3}]) == {"a": [1, 2], "b": [None, 3]}
    with pytest.raises(DatasetError, match="a row of shards is a mapping of names to values, not 'a'"):
        columns_of(["a"])  # type: ignore[list-item]


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
    for values in ([1, "x"], {"a": object()}):
        with pytest.raises(DatasetError, match=r"^the column 'mixed' cannot be passed on: .*$"):
            read({**ROW, "mixed": values})
    with pytest.raises(DatasetError, match=r"^the column 'mixed' cannot be passed on: .*$"):
        read({**ROW, "mixed": 1}, {"shard_id": 4, "labels": [1], "image_ids": ["c"], "mixed": "x"})


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
