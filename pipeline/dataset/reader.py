"""URI → ray.data.Dataset of images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.extensions import ArrowTensorArray

from pipeline import storage
from pipeline.dataset import schema
from pipeline.dataset.columns import convert as convert_column
from pipeline.dataset.sources import Source, find_source
from pipeline.dataset.units import ImageFiles, RowRange, Unit
from pipeline.errors import DatasetError, one_line

Convert = Callable[[pa.Table], pa.Table]
# Decoded images are many times larger than encoded ones: Ray gathers blocks of a good size from what comes in pieces.
# Photographs of 12 megapixels, of 4 MB, come four at a time.
_ROWS_AT_ONCE = 64
_BYTES_AT_ONCE = 16 * 2**20
# Rows without images.
_SMALL_ROWS_AT_ONCE = 2**16
# A column of labels is small and far away: many row groups at a time.
_COLUMN_THREADS = 32


def read_images(
    uri: str,
    *,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    decode: bool = True,
    override_num_blocks: int | None = None,
) -> ray.data.Dataset:
    """Images, and what is known of each, as a Ray Dataset.

    Rows hold `image`: uint8 [H, W, C] (or the encoded bytes), C being 1 for grays and 3 for colors; `image_id`, which
    derives from file and row where the source has none; `label` int64 where there are labels; of a synthetic dataset
    all other columns of the contract.

    Args:
        uri: a synthetic dataset, a Parquet file or a folder of them with a column `image` (binary, or
            struct<bytes, path>), or a folder of images with one subfolder a class, or none.
        split: which of several splits to read, such as `test`; `docs/images.md` says where they are looked for.
        columns: which ones; further columns of a Parquet file must be named here.
        decode: decode the images.
        override_num_blocks: into how many blocks to read, for parallelism.

    Raises:
        DatasetError: nothing there, no images in it, a truncated or foreign file, a missing column; the message names
            it. An image that cannot be decoded raises when it is read.
    """
    wanted = list(columns or ())
    derived = {"image", "image_id"}
    source = find_source(uri, [name for name in wanted if name not in schema.COLUMNS], split=split)
    absent = [name for name in wanted if name not in source.columns and name not in derived]
    if absent:
        raise DatasetError(f"{uri!r} has no column {absent[0]!r}, only {sorted(derived | set(source.columns))}")
    return read_source(
        source, columns=columns, convert=partial(_decode, uri) if decode else None, num_blocks=override_num_blocks
    )


def read_source(
    source: Source,
    *,
    columns: Sequence[str] | None = None,
    convert: Convert | None = None,
    num_blocks: int | None = None,
) -> ray.data.Dataset:
    """The rows of a source, with encoded images, as `convert` makes them over."""
    datasource = _ImagesDatasource(source, columns, convert, num_blocks)
    return ray.data.read_datasource(datasource, override_num_blocks=num_blocks)


def read_first(source: Source, columns: Sequence[str]) -> pa.Table:
    """The first row of a source, its image encoded, read in this process.

    Raises:
        DatasetError: it cannot be read.
    """
    first = source.units[0].split(source.units[0].num_rows)[:1]
    return next(iter(_read(first, source.columns, columns, None)))


def read_column(source: Source, name: str) -> Iterator[pa.Table]:
    """One column of Parquet files, a table a row group, read in this process; nothing of a folder of images.

    Raises:
        DatasetError: it cannot be read.
    """
    units = [unit for unit in source.units if isinstance(unit, RowRange)]
    with ThreadPoolExecutor(_COLUMN_THREADS) as threads:
        yield from threads.map(lambda unit: pa.concat_tables(_read_rows(unit, source.columns, [name])), units)


class _ImagesDatasource(Datasource):
    """Our own instead of Ray's Parquet reader, because the id of an image derives from its file and row."""

    def __init__(
        self, source: Source, columns: Sequence[str] | None, convert: Convert | None, num_blocks: int | None
    ) -> None:
        super().__init__()
        self._source, self._columns, self._convert = source, columns, convert
        self._units = list(source.units) if num_blocks is None else _split(source.units, num_blocks)

    def estimate_inmemory_data_size(self) -> int:
        return sum(unit.size for unit in self._units)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any | None = None
    ) -> list[ReadTask]:
        return [self._read_task(units, per_task_row_limit) for units in _groups(self._units, parallelism)]

    def _read_task(self, units: list[Unit], row_limit: int | None) -> ReadTask:
        columns, convert, types = self._columns, self._convert, self._source.columns
        metadata = BlockMetadata(
            num_rows=sum(unit.num_rows for unit in units),
            size_bytes=sum(unit.size for unit in units),
            input_files=None,
            exec_stats=None,
        )
        return ReadTask(lambda: _read(units, types, columns, convert), metadata, per_task_row_limit=row_limit)


def _split(units: Sequence[Unit], num_blocks: int) -> list[Unit]:
    """Cut row groups so that there are as many blocks as asked for, where there are as many rows."""
    rows = sum(unit.num_rows for unit in units)
    return [part for unit in units for part in unit.split(-(-num_blocks * unit.num_rows // max(1, rows)))]


def _groups(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """Neighboring units in at most `count` groups of about equal numbers of rows."""
    rows = sum(unit.num_rows for unit in units)
    groups: dict[int, list[Unit]] = {}
    before = 0
    for unit in units:
        # By the middle of the unit, so that one large unit does not drag its successors along.
        groups.setdefault(int((before + unit.num_rows / 2) * count / max(1, rows)), []).append(unit)
        before += unit.num_rows
    return list(groups.values())


def _read(
    units: Sequence[Unit], types: dict[str, pa.DataType], columns: Sequence[str] | None, convert: Convert | None
) -> Iterable[pa.Table]:
    for unit in units:
        tables = _read_rows(unit, types, columns) if isinstance(unit, RowRange) else _read_files(unit, columns)
        for table in tables:
            yield convert(table) if convert is not None else table


def _rows_at_once(unit: Unit) -> int:
    """Return how many rows with images are read together, so that few large images are."""
    return min(_ROWS_AT_ONCE, max(1, _BYTES_AT_ONCE * unit.num_rows // max(1, unit.size)))


def _read_rows(unit: RowRange, types: dict[str, pa.DataType], columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Read rows piece by piece: of nested columns Arrow cannot hold a whole row group beyond 2 GB."""
    wanted = [name for name in types if columns is None or name in columns]
    size = _rows_at_once(unit) if "image" in wanted else _SMALL_ROWS_AT_ONCE
    # Without any column nothing tells how many rows there are.
    options: Any = {"row_groups": [unit.row_group], "columns": wanted or list(types)[-1:]}
    row = 0
    try:
        with storage.open_file(unit.uri) as file:
            for batch in pq.ParquetFile(file).iter_batches(size, **options):
                start = max(row, unit.start)
                rows = batch.slice(start - row, max(0, min(unit.stop, row + len(batch)) - start))
                row += len(batch)
                if len(rows):
                    yield _to_table(unit, start, rows, types, columns)
                if row >= unit.stop:
                    break
    except (pa.ArrowException, *storage.read_errors()) as error:
        raise DatasetError(f"cannot read {unit.uri!r}: {one_line(error)}") from error


def _to_table(
    unit: RowRange, start: int, rows: pa.RecordBatch, types: dict[str, pa.DataType], columns: Sequence[str] | None
) -> pa.Table:
    """Return rows of a row group, from row `start` on, as the contract has them."""
    wanted = [name for name in types if columns is None or name in columns]
    arrays = {name: convert_column(unit.uri, name, rows[name], types[name]) for name in wanted}
    if columns is None or "image_id" in columns:
        ids = _derived_ids(unit, start, len(rows))
        arrays["image_id"] = pc.coalesce(arrays["image_id"], ids) if "image_id" in arrays else ids  # pyright: ignore[reportAttributeAccessIssue]
    if "image" in arrays and arrays["image"].null_count:
        place = arrays["image"].is_null().index(True).as_py()
        # Hugging Face datasets writes images that lie in files of their own as paths, unless they are embedded.
        there = f"only {rows['image'][place].as_py()}" if pa.types.is_struct(rows["image"].type) else "it is null"
        raise DatasetError(f"{unit.uri!r} has no bytes of the image in row {unit.first_row + start + place}: {there}")
    return pa.table(arrays)


def _derived_ids(unit: RowRange, start: int, count: int) -> pa.Array:
    """Return ids of rows that have none of their own, from file and row."""
    stem = unit.name.removesuffix(unit.name[-len(".parquet") :])
    first = unit.first_row + start
    return pa.array([f"{stem}-{row:08d}" if stem else f"{row:08d}" for row in range(first, first + count)], pa.string())


def _read_files(unit: ImageFiles, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    size = _rows_at_once(unit)
    for start in range(0, unit.num_rows, size):
        files = unit.files[start : start + size]
        arrays: dict[str, pa.Array] = {
            "image": pa.array([storage.read_bytes(uri) for uri, _, _ in files], pa.binary()),
            "image_id": pa.array([name for _, name, _ in files], pa.string()),
        }
        if files[0][2] is not None:
            arrays["label"] = pa.array([label for _, _, label in files], pa.int64())
        yield pa.table({name: array for name, array in arrays.items() if columns is None or name in columns})


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
        # Filled one by one: of a list, numpy tries to make one array, and fails where only the last sizes differ, as
        # those of gray and color images do.
        column = np.empty(len(arrays), object)
        for row, array in enumerate(arrays):
            column[row] = array
        table = table.append_column(name, ArrowTensorArray.from_numpy(column, column_name=name))
    return table
