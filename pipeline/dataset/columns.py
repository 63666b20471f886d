"""Choose the columns of a Parquet file to read, and convert what other tools write to the contract's types.

Polars writes views and large types. pandas writes categories, and whole numbers as floats where some are missing.
DuckDB and Hugging Face datasets write lists of fixed size. A column without any value has the type null.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import schema
from pipeline.errors import DatasetError, as_line

_IMAGE, _IMAGE_ID, _LABEL, _KEPT = "image", "image_id", "label", "keep_indices"
# Columns of the contract that count as absent if they have another type, because not every reader needs them.
_OPTIONAL = (_LABEL, _IMAGE_ID, *schema.ABOUT_SYNTHESIS)
# Names that others give to the column of labels, in lower case.
_NAMES_OF_LABELS = ("label", "labels", "target", "targets", "class", "class_id", "category", "fine_label", "y")


def column_types(uri: str, file_schema: pa.Schema, extra_columns: Sequence[str] = ()) -> dict[str, pa.DataType]:
    """Return the columns to read, each with the type that it is converted to; `image` becomes encoded bytes.

    A `label` that is no number counts as absent: many read images alone, and `likely_labels` names it to the others. So
    does an `image_id` that is no id, see `unread_ids`. What only a synthesis knows is read of files with
    `keep_indices`; a column of such a name in other files is another's, and is read as it is if it is asked for.

    Args:
        uri: location of the file, for messages.
        file_schema: schema of the file.
        extra_columns: columns to read besides those of the contract.

    Raises:
        DatasetError: there is no column of images, or a column is missing, comes twice or cannot be converted.
    """
    contract = schema.COLUMNS.keys() - (() if _KEPT in file_schema.names else schema.ABOUT_SYNTHESIS)
    names = [name for name in file_schema.names if name in contract or name in extra_columns]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise DatasetError(f"{uri!r} has several columns {repeated[0]!r}")
    kinds = {field.name: field.type for field in file_schema}
    if not _holds_images(kinds.get(_IMAGE)):
        found = f"it is {kinds[_IMAGE]}" if _IMAGE in kinds else f"its columns are {file_schema.names[:10]}"
        raise DatasetError(f"{uri!r} has no column `image` of encoded images (binary, or struct<bytes, path>): {found}")
    absent = [name for name in extra_columns if name not in kinds]
    if absent:
        raise DatasetError(f"{uri!r} has no column {absent[0]!r}, only {file_schema.names[:10]}")
    types = {
        name: _read_type(uri, name, kinds[name]) if name in contract else kinds[name]
        for name in names
        if name != _IMAGE
    }
    return {_IMAGE: pa.binary()} | {name: kind for name, kind in types.items() if kind is not None}


def likely_labels(file_schema: pa.Schema) -> str | None:
    """Return name and type of a column that may be meant as `label`, by its name; None if there is none, or a `label`.

    Args:
        file_schema: schema of a file. A `label` that is not numeric, and so is not read, is returned too.
    """
    label = next((field.type for field in file_schema if field.name == _LABEL), None)
    if label is not None:
        return None if _can_be(schema.COLUMNS[_LABEL], label) else f"{_LABEL!r} ({label})"
    by_name = {field.name.lower(): field for field in reversed(list(file_schema))}
    found = next((by_name[name] for name in _NAMES_OF_LABELS if name in by_name), None)
    return None if found is None else f"{found.name!r} ({found.type})"


def unread_ids(file_schema: pa.Schema) -> str | None:
    """Return name and type of a column `image_id` that is not read, as it holds neither texts nor whole numbers."""
    kind = next((field.type for field in file_schema if field.name == _IMAGE_ID), None)
    fits = kind is None or pa.types.is_null(_plain(kind)) or _can_be(schema.COLUMNS[_IMAGE_ID], kind)
    return None if fits else f"{_IMAGE_ID!r} ({kind})"


def _read_type(uri: str, name: str, kind: pa.DataType) -> pa.DataType | None:
    wanted = schema.COLUMNS[name]
    # A column of ids that are all null counts as absent.
    if name == _IMAGE_ID and pa.types.is_null(_plain(kind)):
        return None
    if _can_be(wanted, kind):
        return wanted
    if name in _OPTIONAL:
        return None
    raise DatasetError(f"{uri!r}: column {name!r} is {kind}, it must be {wanted}")


def _can_be(wanted: pa.DataType, kind: pa.DataType) -> bool:
    return any(fits(wanted) and accepts(_plain(kind)) for fits, accepts in _CONVERSIONS)


def _is_number(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )


def _is_id(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_integer(kind)


def _is_list(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in kinds) and pa.types.is_integer(kind.value_type)


# (test of the contract's type, test of the types that a file may have instead).
_CONVERSIONS: tuple[tuple[Callable[[Any], bool], Callable[[Any], bool]], ...] = (
    (pa.types.is_string, _is_id),
    (pa.types.is_integer, _is_number),
    (pa.types.is_floating, _is_number),
    (pa.types.is_list, _is_list),
)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values, without dictionary encoding and the like."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


def _holds_images(kind: pa.DataType | None) -> bool:
    if kind is not None and pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        kind = kind.field(index).type if index >= 0 else None
    return kind is not None and pa.types.is_binary(_plain(kind))


def cast_column(uri: str, name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert a column of a file to the type that `column_types` gave for it.

    Args:
        uri: location of the file, for messages.
        name: name of the column.
        column: the column as it is in the file.
        kind: the type to convert to.

    Raises:
        DatasetError: a value does not fit, such as a label of 1.5.
    """
    if name == _IMAGE and pa.types.is_struct(column.type):
        # Unlike `field`, `struct_field` gives null for the bytes of a missing struct.
        column = pc.struct_field(column, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(column, pa.ExtensionArray) and not column.type.equals(kind):
        column = column.storage
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type) and pa.types.is_integer(kind):
            # pandas stores whole numbers as floats with NaN where some are missing.
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)  # pyright: ignore[reportAttributeAccessIssue]
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DatasetError(f"{uri!r}: column {name!r} is not all {kind}: {as_line(error)}") from error
