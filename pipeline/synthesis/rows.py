"""Rows of shards, from the plan or of a user's own making: what they must hold, and what else they may."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset import schema
from pipeline.errors import DatasetError

SHARD_ID, LABELS, IMAGE_IDS = "shard_id", "labels", "image_ids"
_NEEDED = (SHARD_ID, LABELS, IMAGE_IDS)
# Stored in 32 bits.
_MAX_SHARD_ID = 2**31 - 1


@dataclass(frozen=True)
class ShardRow:
    """What is to be made of one shard.

    Attributes:
        labels: one for each image.
        image_ids: as many, all different.
        further: name → one value for each image, of the row's further columns.
    """

    shard_id: int
    labels: list[int]
    image_ids: list[str]
    further: dict[str, list[Any]]


class RowReader:
    """Reads rows of shards from batches, and checks each by itself and against those that were read before.

    It cannot see what other processes read.

    Args:
        num_classes: of the teacher; None where it is not known yet.
        again: accept a row that was read before in another batch: Ray runs again what was lost.
    """

    def __init__(self, num_classes: int | None = None, *, again: bool = False) -> None:
        self._num_classes, self._again = num_classes, again
        self._shards: dict[int, int] = {}
        self._images: dict[int, int] = {}

    def read(self, batch: Any) -> list[ShardRow]:
        """Return the rows of a batch.

        Args:
            batch: name → values, a pandas DataFrame, or a pyarrow Table.

        Raises:
            DatasetError: a column is missing or a value impossible, or an id comes twice.
        """
        columns = _columns(batch)
        names = list(columns)
        missing = [name for name in _NEEDED if name not in columns]
        if missing:
            needed = ", ".join(_NEEDED)
            raise DatasetError(f"rows of shards need the columns {needed}: {missing[0]!r} is not in {names}")
        taken = sorted(set(names) & set(schema.COLUMNS) - set(_NEEDED))
        if taken:
            raise DatasetError(f"rows of shards must not have the column {taken[0]!r}: the images made of them have it")
        rows = [self._row(dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)]
        for place, row in enumerate(rows):
            self._check_new(row, together=row.shard_id in {other.shard_id for other in rows[:place]})
        return rows

    def _row(self, values: Mapping[str, Any]) -> ShardRow:
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
        further = {
            name: _for_each(shard_id, name, value, len(labels)) for name, value in values.items() if name not in _NEEDED
        }
        return ShardRow(shard_id, labels, image_ids, further)

    def _label(self, shard_id: int, value: Any) -> int:
        label = _whole(value)
        if label is None:
            raise DatasetError(f"shard {shard_id} has the label {_plain(value)!r}: labels are whole numbers")
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
            # Hashes, as there may be millions.
            other = self._images.setdefault(hash(image_id), row.shard_id)
            if other != row.shard_id:
                shards = f"the shards {other} and {row.shard_id}"
                raise DatasetError(f"image id {image_id!r} is in {shards}: ids must differ")


def further_column(row: ShardRow, name: str) -> pa.Array:
    """Return a further column of a row, an entry for each image.

    Raises:
        DatasetError: its values have no common type.
    """
    values = [_plain(value) for value in row.further[name]]
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"shard {row.shard_id}: the column {name!r} cannot be passed on: {reason}") from error


def _columns(batch: Any) -> dict[str, list[Any]]:
    """Return the columns of a batch in any of Ray Data's formats."""
    if isinstance(batch, pa.Table):
        return {name: batch[name].to_pylist() for name in batch.column_names}
    # A mapping of arrays or lists, or a pandas DataFrame.
    if isinstance(batch, Mapping) or hasattr(batch, "columns"):
        return {str(name): list(batch[name]) for name in batch}
    raise DatasetError(f"a batch of shards is a mapping, a DataFrame or a pyarrow Table, not {type(batch).__name__}")


def _shard_id(value: Any) -> int:
    shard_id = _whole(value)
    if shard_id is None or not 0 <= shard_id <= _MAX_SHARD_ID:
        raise DatasetError(f"shard_id is {_plain(value)!r}: it must be a whole number from 0 to {_MAX_SHARD_ID}")
    return shard_id


def _image_id(shard_id: int, value: Any) -> str:
    # An image's path in the dataset derives from it.
    if not isinstance(value, str) or not value or not value.isprintable() or set(value) & set("/\\"):
        raise DatasetError(
            f"shard {shard_id} has the image id {_plain(value)!r}: ids are printable text without slashes"
        )
    return str(value)


def _entries(shard_id: int, name: str, value: Any) -> list[Any]:
    if not _is_list(value):
        raise DatasetError(
            f"shard {shard_id} has {_plain(value)!r} as {name}: it must be a list with one entry for each image"
        )
    return list(value)


def _for_each(shard_id: int, name: str, value: Any, num_images: int) -> list[Any]:
    """Return one value for each image: a list's entries, or anything else again and again."""
    if not _is_list(value):
        return [value] * num_images
    if len(value) != num_images:
        raise DatasetError(
            f"shard {shard_id} has {len(value)} entries in the column {name!r} and {num_images} images: give a list "
            "with one for each image, or a single value for all"
        )
    return list(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _whole(value: Any) -> int | None:
    """Return a value as an int; None where it is no whole number."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    # Arrow and pandas make floats of whole numbers that stand beside missing ones.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    return None


def _plain(value: Any) -> Any:
    """Return numpy's numbers and arrays as Python's own."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _repeated(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
