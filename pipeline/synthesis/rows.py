"""Read and check rows of shards, from the plan or a user's own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.dataset import schema
from pipeline.errors import DatasetError, quoted
from pipeline.synthesis.columns import arrow_column, is_list, plain

SHARD_ID, LABELS, IMAGE_IDS = "shard_id", "labels", "image_ids"
NEEDED = (SHARD_ID, LABELS, IMAGE_IDS)
# Shard ids are stored in 32 bits.
_MAX_SHARD_ID = 2**31 - 1


@dataclass(frozen=True)
class ShardRow:
    """A checked row of one shard.

    Attributes:
        labels: class of each image.
        image_ids: name of each image, all different.
        further: name of a further column → its values, one per image.
    """

    shard_id: int
    labels: list[int]
    image_ids: list[str]
    further: dict[str, pa.Array]


class RowReader:
    """Reads rows of shards from batches, and checks each by itself and against the rows read before.

    It does not know the rows that other processes read.

    Args:
        num_classes: number of the teacher's classes; None if it is not known yet.
        again: whether to accept a row that was read before in another batch: Ray reruns lost tasks.
    """

    def __init__(self, num_classes: int | None = None, *, again: bool = False) -> None:
        self._num_classes, self._again = num_classes, again
        self._shards: dict[int, int] = {}
        self._images: dict[int, int] = {}

    def read(self, batch: Any) -> list[ShardRow]:
        """Return the rows of a batch. Further columns of a pyarrow Table keep their types, others get one type each.

        Args:
            batch: a mapping of names to values, a pandas DataFrame, or a pyarrow Table.

        Raises:
            DatasetError: a column is missing, a value is impossible, or an id occurs twice.
        """
        columns = _columns(batch)
        check_columns(list(columns))
        needed = {name: plain(columns[name]) for name in NEEDED}
        further = {name: arrow_column(name, values) for name, values in columns.items() if name not in NEEDED}
        rows = []
        here: set[int] = set()
        for index in range(len(needed[SHARD_ID])):
            row = self._row(index, {name: values[index] for name, values in needed.items()}, further)
            self._check_new(row, together=row.shard_id in here)
            here.add(row.shard_id)
            rows.append(row)
        return rows

    def _row(self, index: int, values: Mapping[str, Any], further: Mapping[str, pa.Array]) -> ShardRow:
        shard_id = _shard_id(values[SHARD_ID])
        labels = [self._label(shard_id, label) for label in _entries(shard_id, LABELS, values[LABELS])]
        image_ids = [_image_id(shard_id, image_id) for image_id in _entries(shard_id, IMAGE_IDS, values[IMAGE_IDS])]
        if not labels:
            raise DatasetError(f"shard {shard_id} is empty: give one label and one image id for each image")
        if len(labels) != len(image_ids):
            raise DatasetError(f"shard {shard_id} has {len(labels)} labels and {len(image_ids)} image_ids")
        repeated = _repeated(image_ids)
        if repeated is not None:
            raise DatasetError(f"shard {shard_id} has the image id {repeated!r} twice: the images would be equal")
        passed_on = {name: _for_each(shard_id, name, column, index, len(labels)) for name, column in further.items()}
        return ShardRow(shard_id, labels, image_ids, passed_on)

    def _label(self, shard_id: int, value: Any) -> int:
        label = _whole(value)
        if label is None:
            raise DatasetError(f"shard {shard_id} has the label {quoted(value)}: labels are whole numbers")
        if label < 0 or (self._num_classes is not None and label >= self._num_classes):
            known = "" if self._num_classes is None else f", the teacher has {self._num_classes} classes"
            raise DatasetError(f"shard {shard_id} has the label {label}: labels start at 0{known}")
        return label

    def _check_new(self, row: ShardRow, *, together: bool) -> None:
        content = hash((tuple(row.labels), tuple(row.image_ids)))
        known = self._shards.get(row.shard_id)
        if known is not None and (together or not self._again or known != content):
            raise DatasetError(f"shard_id {row.shard_id} comes more than once: each row of shards needs its own")
        self._shards[row.shard_id] = content
        for image_id in row.image_ids:
            # Hashes instead of ids, because there may be millions.
            other = self._images.setdefault(hash(image_id), row.shard_id)
            if other != row.shard_id:
                shards = f"the shards {other} and {row.shard_id}"
                raise DatasetError(f"image id {image_id!r} is in {shards}: ids must differ")


def check_columns(names: list[str]) -> None:
    """Check that rows have the columns that shards need, and none of those that images get.

    Raises:
        DatasetError: a column is missing, or must not be there.
    """
    missing = [name for name in NEEDED if name not in names]
    if missing:
        needed = ", ".join(NEEDED)
        raise DatasetError(f"rows of shards need the columns {needed}: {missing[0]!r} is not in {quoted(names)}")
    taken = sorted(set(names) & set(schema.COLUMNS) - set(NEEDED))
    if taken:
        raise DatasetError(f"rows of shards must not have the column {taken[0]!r}: the images get one of that name")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns of a list of rows, with None where a row does not have a column.

    Raises:
        DatasetError: a row is no mapping.
    """
    for row in rows:
        if not isinstance(row, Mapping):
            raise DatasetError(f"a row of shards is a mapping of names to values, not {quoted(row)}")
    names = dict.fromkeys(name for row in rows for name in row)
    return {str(name): [row.get(name) for row in rows] for name in names}


def _columns(batch: Any) -> dict[str, Any]:
    """Return the columns of a batch in any of Ray Data's formats: Arrow columns as they are, others as lists."""
    if isinstance(batch, pa.Table):
        columns: dict[str, Any] = {name: batch[name] for name in batch.column_names}
    # A mapping of arrays or lists, or a pandas DataFrame.
    elif isinstance(batch, Mapping) or hasattr(batch, "columns"):
        columns = {str(name): _values(str(name), batch[name]) for name in batch}
    else:
        raise DatasetError(
            f"a batch of shards is a mapping, a DataFrame or a pyarrow Table, not {type(batch).__name__}"
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"the columns of a batch of shards differ in length: {quoted(lengths)}")
    return columns


def _values(name: str, column: Any) -> Any:
    values = column if isinstance(column, pa.Array | pa.ChunkedArray) else plain(column)
    if isinstance(values, pa.Array | pa.ChunkedArray | list):
        return values
    raise DatasetError(
        f"the column {name!r} of a batch of shards is {quoted(column)}: give a list with one entry per row"
    )


def _shard_id(value: Any) -> int:
    shard_id = _whole(value)
    if shard_id is None or not 0 <= shard_id <= _MAX_SHARD_ID:
        raise DatasetError(f"shard_id is {quoted(value)}: it must be a whole number from 0 to {_MAX_SHARD_ID}")
    return shard_id


def _image_id(shard_id: int, value: Any) -> str:
    # The image's path in the dataset derives from its id.
    if not isinstance(value, str) or not value or not value.isprintable() or set(value) & set("/\\"):
        raise DatasetError(f"shard {shard_id} has the image id {quoted(value)}: ids are printable text without slashes")
    return str(value)


def _entries(shard_id: int, name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DatasetError(
            f"shard {shard_id} has {quoted(value)} as {name}: it must be a list with one entry for each image"
        )
    return value


def _for_each(shard_id: int, name: str, column: pa.Array, index: int, num_images: int) -> pa.Array:
    """Return one value per image: the entries of a list, or any other value repeated."""
    if not is_list(column.type):
        return column.take(pa.array([index] * num_images))
    entries: pa.Array | None = column[index].values
    if entries is None:
        return pa.nulls(num_images, column.type.value_type)
    if len(entries) != num_images:
        raise DatasetError(
            f"shard {shard_id} has {len(entries)} entries in the column {name!r} and {num_images} images: give a list "
            "with one for each image, or a single value for all"
        )
    return entries


def _whole(value: Any) -> int | None:
    """Return a value as an int; None if it is no whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # Arrow and pandas turn whole numbers into floats if others are missing.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _repeated(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
