"""Convert values of user rows to Python and Arrow."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DatasetError, as_line

# Names of the types of pandas' missing values, so that pandas need not be imported. NaN is a number, and stays one.
_PANDAS_NULLS = ("NaTType", "NAType")
_NO_COMMON_TYPE = (pa.ArrowException, TypeError, OverflowError)


def plain(value: Any) -> Any:
    """Convert arrays, tensors, series, ranges and tuples to lists, and numbers to Python's own."""
    if value is None or isinstance(value, str | bytes | bool | int | float):
        # NumPy types that are subclasses of Python's.
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufUS":
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | range) or (isinstance(value, np.ndarray) and value.ndim > 0):
        return [plain(entry) for entry in value]
    # Python's dates have no nanoseconds, so NumPy's are left to Arrow.
    if isinstance(value, np.datetime64 | np.timedelta64):
        return None if np.isnat(value) else value
    for name in ("to_pylist", "as_py", "tolist"):
        if callable(getattr(value, name, None)) and not isinstance(value, type):
            return plain(getattr(value, name)())
    return None if type(value).__name__ in _PANDAS_NULLS else value


def arrow_column(name: str, values: Any) -> pa.Array:
    """Return a column with one type for all its values; an Arrow column keeps its type.

    Raises:
        DatasetError: the values have no common type.
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if not isinstance(column.type, pa.ExtensionType):
            return column
        return _array(name, plain(column), _nested_type(column.type))
    return _array(name, [plain(value) for value in values], None)


def _array(name: str, values: list[Any], wanted: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, wanted)
    except _NO_COMMON_TYPE as error:
        try:
            # pandas writes NaN for missing text.
            return pa.array(values, wanted, from_pandas=True)
        except _NO_COMMON_TYPE:
            raise _cannot_pass_on(f"the column {name!r}", error) from error


def _cannot_pass_on(what: str, error: Exception) -> DatasetError:
    reason = as_line(error)
    return DatasetError(f"{what} cannot be passed on: its values have no common type: {reason}")


def _nested_type(of: pa.ExtensionType) -> pa.DataType | None:
    """Return Ray's tensor type as lists of lists; None if it follows only from the values."""
    shape, value_type = getattr(of, "shape", None), getattr(of, "value_type", None)
    if shape is None or value_type is None:
        return None
    for _ in shape:
        value_type = pa.list_(value_type)
    return value_type


def is_list(of: pa.DataType) -> bool:
    """Return whether a column of this type may hold an entry for each image."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(kind(of) for kind in kinds)


def plain_table(table: pa.Table) -> pa.Table:
    """Convert Ray's tensor columns to lists, which have the same type for tensors of any shape.

    Raises:
        DatasetError: a column holds Python objects for which Arrow has no type.
    """
    return pa.table({name: arrow_column(name, table[name]) for name in table.column_names})


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return a schema that fits tables of all the given ones; columns that a table lacks become null in its rows.

    Raises:
        DatasetError: a column has types without a common one.
    """
    try:
        return pa.unify_schemas(list(schemas), promote_options="permissive")
    except _NO_COMMON_TYPE as error:
        raise _cannot_pass_on("a column of the shards", error) from error


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert a table to a schema of `common_schema`.

    Raises:
        DatasetError: a value does not fit into its column's new type.
    """
    try:
        return pa.concat_tables([schema.empty_table(), table], promote_options="permissive").combine_chunks()
    except _NO_COMMON_TYPE as error:
        raise _cannot_pass_on("a column of the shards", error) from error
