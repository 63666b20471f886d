"""Columns as other tools write them are converted to the contract's types, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import schema
from pipeline.dataset.columns import cast_column, column_types, likely_labels
from pipeline.dataset.discovery import find_source
from pipeline.dataset.rows import read_unit
from pipeline.errors import DatasetError

CODES = [schema.encode_image(np.full((8, 8, 3), value, np.uint8)) for value in range(3)]
ENCODED = pa.array(CODES, pa.binary())


def as_read(tmp_path: Path, columns: dict[str, Any]) -> dict[str, list[Any]]:
    """Write a file of these columns, and return the columns as they are read from it."""
    file = str(tmp_path / "x.parquet")
    pq.write_table(pa.table(columns), file)
    types = column_types(file, pq.read_schema(file))
    (batch,) = pq.ParquetFile(file).iter_batches(columns=list(types))
    found = {name: cast_column(file, name, batch[name], kind) for name, kind in types.items()}
    assert {name: array.type for name, array in found.items()} == types
    return {name: array.to_pylist() for name, array in found.items()}


@pytest.mark.parametrize(
    "image",
    [
        ENCODED.cast(pa.large_binary()),
        ENCODED.cast(pa.binary_view()),
        ENCODED.dictionary_encode(),
        pa.array([{"path": "x", "bytes": code} for code in CODES]),
        pa.array(
            [{"bytes": code, "path": None} for code in CODES],
            pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
        ),
    ],
    ids=lambda array: str(array.type),
)
def test_images_as_polars_and_pandas_write_them(tmp_path: Path, image: pa.Array) -> None:
    assert as_read(tmp_path, {"image": image}) == {"image": CODES}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        # pandas, which has no whole numbers beside a missing one.
        (pa.array([2.0, float("nan"), None]), [2, None, None]),
        (pa.array([True, False, True]), [1, 0, 1]),
        (pa.nulls(3), [None, None, None]),
        (pa.array([2, 0, None], pa.uint8()), [2, 0, None]),
        (pa.array([2, 0, 2]).dictionary_encode(), [2, 0, 2]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_labels_become_int64(tmp_path: Path, label: pa.Array, expected: list[int | None]) -> None:
    assert as_read(tmp_path, {"image": ENCODED, "label": label})["label"] == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, 8, 9]), ["7", "8", "9"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["a", "b", None], pa.string_view()), ["a", "b", None]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_ids_become_strings(tmp_path: Path, ids: pa.Array, expected: list[str | None]) -> None:
    assert as_read(tmp_path, {"image": ENCODED, "image_id": ids})["image_id"] == expected


def test_ids_of_which_none_is_known_are_not_read(tmp_path: Path) -> None:
    assert as_read(tmp_path, {"image": ENCODED, "image_id": pa.nulls(3)}).keys() == {"image"}


@pytest.mark.parametrize("kind", [pa.large_list(pa.int64()), pa.list_(pa.uint8(), 2)], ids=str)
def test_lists_of_other_kinds_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    kept = [[0, 3], [1, 2], [0, 1]]
    assert as_read(tmp_path, {"image": ENCODED, "keep_indices": pa.array(kept, kind)})["keep_indices"] == kept


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0.5, 1.0, 2.0]}, r"x\.parquet': column 'label' is not all int64: Float value 0.5"),
        ({"label": pa.array([2**63] * 3, pa.uint64())}, "column 'label' is not all int64"),
        ({"keep_indices": [[40000]] * 3}, "column 'keep_indices' is not all list"),
        ({"keep_indices": ["0 1"] * 3}, "column 'keep_indices' is string, it must be list"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        as_read(tmp_path, {"image": ENCODED, **columns})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ids", [[0.5, 1.5, 2.5], [[0], [1], [2]]])
def test_ids_that_are_none_are_not_read_and_a_line_says_so(
    tmp_path: Path, ids: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"image": ENCODED, "image_id": ids}
    assert as_read(tmp_path, columns).keys() == {"image"}
    source = find_source(str(tmp_path / "x.parquet"))
    assert "its column 'image_id' (" in capsys.readouterr().err
    (table,) = read_unit(source, source.units[0])
    assert table["image_id"].to_pylist() == ["00000000", "00000001", "00000002"]


def test_columns_that_others_named_as_a_synthesis_does_are_theirs(tmp_path: Path) -> None:
    theirs = {
        "shard_id": ["a", "b", "c"],
        "class_loss": [[0.5], [0.5], [0.5]],
        "teacher_confidence": [{"x": 1}] * 3,
        "teacher_prediction": [2.5] * 3,
    }
    columns = {"image": ENCODED, "label": [0, 1, 0], **{name: pa.array(values) for name, values in theirs.items()}}
    assert as_read(tmp_path, columns).keys() == {"image", "label"}
    uri = str(tmp_path / "x.parquet")
    source = find_source(uri, ["shard_id"])
    (table,) = read_unit(source, source.units[0])
    assert table["shard_id"].to_pylist() == ["a", "b", "c"]
    # Files with other such columns are one dataset all the same.
    pq.write_table(pa.table({"image": ENCODED, "label": [0, 1, 0], "shard_id": [0, 0, 0]}), tmp_path / "y.parquet")
    assert find_source(str(tmp_path)).num_rows == 6


def test_what_a_synthesis_knows_is_read_of_files_with_kept_patches(tmp_path: Path) -> None:
    kept = pa.array([[0]] * 3, pa.list_(pa.int16()))
    found = as_read(tmp_path, {"image": ENCODED, "keep_indices": kept, "class_loss": [0.5] * 3, "shard_id": ["a"] * 3})
    assert found == {"image": CODES, "keep_indices": [[0]] * 3, "class_loss": [0.5] * 3}


def test_a_column_that_comes_twice_is_refused() -> None:
    twice = pa.schema([("image", pa.binary()), ("label", pa.int64()), ("label", pa.int64()), ("x", pa.int8())])
    with pytest.raises(DatasetError, match=r"'f' has several columns 'label'"):
        column_types("f", twice)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": ENCODED, "labels": [0, 1, 2], "y": [0, 1, 2]}, "'labels' (int64)"),
        ({"Class": ["a", "b", "c"]}, "'Class' (string)"),
        ({"Label": [0, 1, 2]}, "'Label' (int64)"),
        ({"label": [0, 1, 2], "target": [0, 1, 2]}, None),
        ({"label": ["a", "b", "c"], "target": [0, 1, 2]}, "'label' (string)"),
        ({"label": [[0], [1], [2]]}, f"'label' ({pa.list_(pa.int64())})"),
        ({"image": ENCODED, "width": [1, 2, 3]}, None),
    ],
)
def test_a_column_that_may_hold_labels_is_known_by_its_name(columns: dict[str, Any], expected: str | None) -> None:
    assert likely_labels(pa.table(columns).schema) == expected
