"""Read rows of Parquet files and image files in this process, as Arrow tables.

Ray's readers are not used, because the id of an image derives from its file and row.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset.columns import cast_column
from pipeline.dataset.open_files import OpenFiles
from pipeline.dataset.source import Source
from pipeline.dataset.units import ImageFiles, RowRange, Unit
from pipeline.errors import DatasetError, one_line

# Rows are read in small pieces, which Ray gathers into blocks, because decoded images are many times larger than
# encoded ones. Photographs of 12 megapixels and 4 MB come four at a time.
_ROWS_AT_ONCE = 64
_BYTES_AT_ONCE = 16 * 2**20
# Number of rows without images that are read at once.
_SMALL_ROWS_AT_ONCE = 2**16
# Number of row groups of a file that one thread reads, so that they share the cost of its footer.
_NEIGHBORS = 16
# Advice where ids repeat, for messages.
SEVERAL_DATASETS = "if these are several datasets, give the URI of each in a list"


def read_first(source: Source, columns: Sequence[str]) -> pa.Table:
    """Read the first row of a source, its image encoded.

    Raises:
        DatasetError: it cannot be read.
    """
    return next(read_unit(source, source.units[0].select([0]), columns))


def read_columns(source: Source, *names: str) -> Iterator[pa.Table]:
    """Yield small columns of Parquet files, one table per row group; nothing for a folder of images.

    Raises:
        DatasetError: it cannot be read.
    """
    units = [(0, unit) for unit in source.units if isinstance(unit, RowRange)]

    def read(neighbors: list[tuple[int, Unit]]) -> list[pa.Table]:
        with OpenFiles() as files:
            return [pa.concat_tables(read_unit(source, unit, names, files)) for _, unit in neighbors]

    with ThreadPoolExecutor(storage.READ_THREADS) as threads:
        for tables in threads.map(read, neighbors_in_files(units)):
            yield from tables


def neighbors_in_files(units: Iterable[tuple[int, Unit]]) -> Iterator[list[tuple[int, Unit]]]:
    """Yield the units of a collection in groups for one thread each: a few neighbors of one file."""
    for _, group in groupby(units, lambda pair: pair[1].uri if isinstance(pair[1], RowRange) else id(pair[1])):
        while neighbors := list(islice(group, _NEIGHBORS)):
            yield neighbors


def repeated_id(source: Source) -> str | None:
    """Return an image id that two images of a source share; None if all are different.

    Only ids stored in foreign Parquet files can repeat: a synthesis makes each id once, and derived ids come from file
    and row. Ids are read without the images.

    Raises:
        DatasetError: the ids cannot be read.
    """
    if source.manifest is not None or "image_id" not in source.columns:
        return None
    tables = list(read_columns(source, "image_id"))
    if not tables:
        return None
    # A row without an id counts with its derived one, so these are the ids as they will be read.
    counts = pa.concat_tables(tables)["image_id"].value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))  # pyright: ignore[reportAttributeAccessIssue]
    return str(repeated[0]["values"]) if len(repeated) else None


def read_unit(
    source: Source, unit: Unit, columns: Sequence[str] | None = None, files: OpenFiles | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of a unit with encoded images in the contract's types, in tables of moderate size.

    Args:
        source: the source that the unit belongs to.
        unit: rows or files to read.
        columns: columns to read; None for all.
        files: keeps the unit's file open for the units that are read next. By default the file is closed again.

    Raises:
        DatasetError: a file cannot be read, or has a row without an image.
    """
    opened = OpenFiles() if files is None else files
    match unit:
        case RowRange():
            if source.arrivals is not None:
                source.arrivals.wait_for(unit.uri)
            tables = _read_rows(unit, source.columns, columns, opened)
        case ImageFiles():
            tables = _read_files(unit, columns)
    with opened if files is None else nullcontext():
        for table in tables:
            yield _qualified(table, source.qualifier) if source.qualifier else table


def _qualified(table: pa.Table, qualifier: str) -> pa.Table:
    """Return the rows with their dataset's qualifier in front of each id."""
    if "image_id" not in table.column_names:
        return table
    ids = pc.binary_join_element_wise(qualifier, table["image_id"], "/")  # pyright: ignore[reportAttributeAccessIssue]
    return table.set_column(table.column_names.index("image_id"), "image_id", ids)


def _rows_at_once(unit: Unit) -> int:
    """Return how many rows with images to read together: fewer if the images are large."""
    return min(_ROWS_AT_ONCE, max(1, _BYTES_AT_ONCE * unit.num_rows // max(1, unit.size)))


def _read_rows(
    unit: RowRange, types: dict[str, pa.DataType], columns: Sequence[str] | None, files: OpenFiles
) -> Iterator[pa.Table]:
    """Read rows piece by piece, because Arrow cannot hold a row group of nested columns beyond 2 GB."""
    wanted = [name for name in types if columns is None or name in columns]
    size = _rows_at_once(unit) if "image" in wanted else _SMALL_ROWS_AT_ONCE
    # At least one column, because a table without columns has no number of rows.
    options: Any = {"row_groups": [unit.row_group], "columns": wanted or list(types)[-1:]}
    row = 0
    try:
        for batch in files.open(unit.uri).iter_batches(size, **options):
            start = max(row, unit.start)
            rows = batch.slice(start - row, max(0, min(unit.stop, row + len(batch)) - start))
            row += len(batch)
            if len(rows):
                yield _to_table(unit, start, rows, types, columns)
            if row >= unit.stop:
                break
        if row < unit.stop:
            raise DatasetError(f"{unit.uri!r} has {row} rows and not {unit.stop}: it, or its index, was replaced")
    except (pa.ArrowException, *storage.read_errors()) as error:
        raise DatasetError(f"cannot read {unit.uri!r}: {one_line(error)}") from error


def _to_table(
    unit: RowRange, start: int, rows: pa.RecordBatch, types: dict[str, pa.DataType], columns: Sequence[str] | None
) -> pa.Table:
    """Convert rows of a row group, from row `start` on, to the contract's types."""
    wanted = [name for name in types if columns is None or name in columns]
    arrays = {name: cast_column(unit.uri, name, rows[name], types[name]) for name in wanted}
    if columns is None or "image_id" in columns:
        ids = _derived_ids(unit, start, len(rows))
        arrays["image_id"] = pc.coalesce(arrays["image_id"], ids) if "image_id" in arrays else ids  # pyright: ignore[reportAttributeAccessIssue]
    if "image" in arrays and arrays["image"].null_count:
        row = arrays["image"].is_null().index(True).as_py()
        # Hugging Face datasets writes only the paths of images in separate files, unless they are embedded.
        there = f"only {rows['image'][row].as_py()}" if pa.types.is_struct(rows["image"].type) else "it is null"
        raise DatasetError(f"{unit.uri!r} has no bytes of the image in row {unit.first_row + start + row}: {there}")
    return pa.table(arrays)


def _derived_ids(unit: RowRange, start: int, count: int) -> pa.Array:
    """Return ids that derive from file and row, for rows without one."""
    stem = unit.name.removesuffix(unit.name[-len(".parquet") :])
    first = unit.first_row + start
    return pa.array([f"{stem}-{row:08d}" if stem else f"{row:08d}" for row in range(first, first + count)], pa.string())


def _read_files(unit: ImageFiles, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    size = _rows_at_once(unit)
    with ThreadPoolExecutor(min(storage.READ_THREADS, size)) as threads:
        for start in range(0, unit.num_rows, size):
            files = unit.files[start : start + size]
            arrays: dict[str, pa.Array] = {"image_id": pa.array([name for _, name, _ in files], pa.string())}
            if columns is None or "image" in columns:
                images = threads.map(_read_file, [uri for uri, _, _ in files])
                arrays["image"] = pa.array(list(images), pa.binary())
            if files[0][2] is not None:
                arrays["label"] = pa.array([label for _, _, label in files], pa.int64())
            yield pa.table({name: array for name, array in arrays.items() if columns is None or name in columns})


def _read_file(uri: str) -> bytes:
    return storage.with_retries(lambda: storage.read_bytes(uri))
