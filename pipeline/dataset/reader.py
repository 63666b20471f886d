"""Read datasets as Ray Datasets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.extensions import ArrowTensorArray

from pipeline.dataset import schema
from pipeline.dataset.collection import ImageCollection, find_images
from pipeline.dataset.open_files import OpenFiles
from pipeline.dataset.rows import read_unit
from pipeline.dataset.source import Source
from pipeline.dataset.units import Unit, split_units
from pipeline.errors import DatasetError

RowConversion = Callable[[pa.Table], pa.Table]


def read_images(
    uri: str | Sequence[str],
    *,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    decode: bool = True,
    override_num_blocks: int | None = None,
) -> ray.data.Dataset:
    """Return images, with all that is known of each, as a Ray Dataset.

    Rows hold `image`: uint8 [H, W, C] (or the encoded bytes), C being 1 for gray and 3 for color; `image_id`, which
    derives from file and row if the source has none; `label` int64 if there are labels; and for a synthetic dataset all
    other columns of the contract. Rows come in any order, as Ray Data's tasks end; sort by `image_id` where it matters.

    Args:
        uri: location of a synthetic dataset, of a Parquet file or a folder of them with a column `image` (binary, or
            struct<bytes, path>), or of a folder of images with one subfolder per class, or none. Several locations are
            read one after another, with the columns that all of them have; ids then begin with a qualifier of their
            dataset, see `find_images`.
        split: name of the split to read, where there are several, such as `test`; `docs/images.md` says how splits are
            found.
        columns: columns to read; by default those of the contract that every location has. Further columns of a Parquet
            file must be named here.
        decode: whether to decode the images.
        override_num_blocks: number of blocks to read, which limits how many tasks read at once.

    Raises:
        DatasetError: nothing is there, it holds no images, a file is truncated or foreign, a column is missing, or
            labels of several URIs mean different classes; the message names it. An image that cannot be decoded raises
            when it is read.
    """
    extra = [name for name in columns or () if name not in schema.COLUMNS or name in schema.ABOUT_SYNTHESIS]
    images = find_images(uri, split=split, extra_columns=extra)
    derived = {"image", "image_id"}
    shared = derived.union(set.intersection(*(set(source.columns) for source in images.sources)))
    chosen = sorted(shared) if columns is None else list(columns)
    for source in images.sources:
        absent = [name for name in chosen if name not in source.columns and name not in derived]
        if absent:
            raise DatasetError(
                f"{source.uri!r} has no column {absent[0]!r}, only {sorted(derived | set(source.columns))}"
            )
    if "label" in chosen:
        _check_same_classes(images.sources)
    converts = [partial(_decode, source.uri) if decode else None for source in images.sources]
    return read_collection(images, columns=chosen, converts=converts, num_blocks=override_num_blocks)


def _check_same_classes(sources: Sequence[Source]) -> None:
    """Check that labels mean the same classes in all sources.

    Raises:
        DatasetError: class names differ, or only some of the sources have them.
    """
    first = sources[0]
    for source in sources[1:]:
        if source.class_names != first.class_names:
            raise DatasetError(
                f"{first.uri!r} and {source.uri!r} have different classes, so their labels cannot be read together: "
                "read each by itself, or name columns without label"
            )


def read_collection(
    images: ImageCollection,
    *,
    columns: Sequence[str] | None = None,
    converts: Sequence[RowConversion | None],
    num_blocks: int | None = None,
) -> ray.data.Dataset:
    """Return the rows of a collection in its order, converted per source.

    Args:
        images: the images to read.
        columns: columns to read, from the sources that have them; None for all.
        converts: one function per source, from rows with encoded images to rows; None leaves rows unchanged.
        num_blocks: number of blocks to read. They are fewer, and divided by their bytes in memory, where a task would
            have to read a large row group for a few of its rows.
    """
    datasource = _ImagesDatasource(images, columns, converts, num_blocks)
    # Ray would cut what a task yields into more blocks, to reach their number.
    return ray.data.read_datasource(
        datasource, override_num_blocks=num_blocks and min(num_blocks, datasource.num_units)
    )


class _ImagesDatasource(Datasource):
    """A Ray Data source whose read tasks each read neighboring units."""

    def __init__(
        self,
        images: ImageCollection,
        columns: Sequence[str] | None,
        converts: Sequence[RowConversion | None],
        num_blocks: int | None,
    ) -> None:
        super().__init__()
        # Each task carries its own units, and should not carry those of all others.
        self._sources = [source.without_units() for source in images.sources]
        self._columns, self._converts = columns, converts
        self._units = images.units if num_blocks is None else _split(images.units, num_blocks)

    @property
    def num_units(self) -> int:
        return len(self._units)

    def estimate_inmemory_data_size(self) -> int:
        return sum(unit.size for _, unit in self._units)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any | None = None
    ) -> list[ReadTask]:
        return [self._read_task(units, per_task_row_limit) for units in _groups(self._units, parallelism)]

    def _read_task(self, units: list[tuple[int, Unit]], row_limit: int | None) -> ReadTask:
        sources, columns, converts = self._sources, self._columns, self._converts
        metadata = BlockMetadata(
            num_rows=sum(unit.num_rows for _, unit in units),
            size_bytes=sum(unit.size for _, unit in units),
            input_files=None,
            exec_stats=None,
        )

        def read() -> Iterator[pa.Table]:
            with OpenFiles() as files:
                for number, unit in units:
                    convert = converts[number]
                    for table in read_unit(sources[number], unit, columns, files):
                        yield table if convert is None else convert(table)

        return ReadTask(read, metadata, per_task_row_limit=row_limit)


def _split(units: Sequence[tuple[int, Unit]], num_blocks: int) -> list[tuple[int, Unit]]:
    """Cut units so that there are `num_blocks` or more, if there are that many rows, and see `split_units`."""
    rows = sum(unit.num_rows for _, unit in units)
    return split_units(units, [-(-num_blocks * unit.num_rows // max(1, rows)) for _, unit in units])


def _groups(units: Sequence[tuple[int, Unit]], count: int) -> list[list[tuple[int, Unit]]]:
    """Group neighboring units into at most `count` groups of about equal numbers of rows."""
    rows = sum(unit.num_rows for _, unit in units)
    groups: dict[int, list[tuple[int, Unit]]] = {}
    before = 0
    for number, unit in units:
        # A unit's group follows from its middle row, so that one large unit does not shift those after it.
        groups.setdefault(int((before + unit.num_rows / 2) * count / max(1, rows)), []).append((number, unit))
        before += unit.num_rows
    return list(groups.values())


def _decode(uri: str, table: pa.Table) -> pa.Table:
    if "image" not in table.column_names:
        return table
    codes = table["image"].to_pylist()
    named = "image_id" in table.column_names
    names = table["image_id"].to_pylist() if named else [f"row {row}" for row in range(len(table))]
    pixels = [schema.decode_image(code, name, uri) for code, name in zip(codes, names, strict=True)]
    return with_tensors(table.drop_columns(["image"]), {"image": pixels})


def with_tensors(table: pa.Table, tensors: Mapping[str, list[np.ndarray]]) -> pa.Table:
    """Return a block with tensor columns, each of one shape or of several, beside the columns of a table."""
    for name, arrays in tensors.items():
        # Filled one by one: from a list numpy tries to make a single array, and fails if only the last sizes differ, as
        # with gray and color images.
        column = np.empty(len(arrays), object)
        for row, array in enumerate(arrays):
            column[row] = array
        table = table.append_column(name, ArrowTensorArray.from_numpy(column, column_name=name))
    return table
