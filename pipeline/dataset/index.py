"""The index of a synthetic dataset: one file with a row for each part, so that nobody has to open every part.

The part files are authoritative. A row of the index is used only if `data/` lists the part's file at the stated size;
other parts are opened, so an old, incomplete or missing index costs only time.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset.footers import MOST_ROWS_PER_BYTE
from pipeline.dataset.part_files import part_uri
from pipeline.errors import DatasetError, one_line
from pipeline.log import logger

INDEX = "index.parquet"
_DIGEST = b"digest"
# Twice the number of shards that a manifest may have.
_MOST_ROWS = 2 * 10**7
_SCHEMA = pa.schema(
    {
        "shard_id": pa.int32(),
        "num_rows": pa.int32(),
        # Size of the part, and of its row group before compression, by which reading is divided among tasks.
        "bytes": pa.int64(),
        "row_group_bytes": pa.int64(),
        # Classes of the part, and means over its images.
        "labels": pa.list_(pa.int32()),
        "class_loss": pa.float32(),
        "teacher_confidence": pa.float32(),
        # How it was made; null if the run that wrote the index did not make it.
        "seconds": pa.float32(),
        "worker": pa.string(),
        "peak_bytes": pa.int64(),
        "attempts": pa.int32(),
        "node": pa.string(),
        "gpu": pa.string(),
        "device": pa.string(),
    }
)
COLUMNS = tuple(_SCHEMA.names)
# Indexes of earlier versions lack them.
_LATER_COLUMNS = ("attempts", "node", "gpu", "device")
# Columns that only the worker which made a part can fill in.
KNOWN_BY_MAKER = ("seconds", "worker", "peak_bytes", "node", "gpu", "device")
# Columns of a part that its row sums up.
_SUMMED = ("label", "class_loss", "teacher_confidence")
_FOR_READERS = ("shard_id", "num_rows", "bytes", "row_group_bytes")


@dataclass(frozen=True)
class IndexedPart:
    """Facts of a part in the index: its rows, and the bytes of its row group before compression."""

    num_rows: int
    row_group_bytes: int


def index_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table of the index's columns; what a row does not have is null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], schema=_SCHEMA)


def read_index(output: str, digest: str, columns: Sequence[str] = COLUMNS) -> pa.Table:
    """Return the index of a dataset. It has no rows if there is none, or if it cannot be used, as a line says.

    Args:
        output: folder of the dataset.
        digest: digest of the dataset.
        columns: columns of the index to read.
    """
    try:
        return load_index(output, digest, columns)
    except DatasetError as error:
        return _unused(output, columns, error)


def load_index(output: str, digest: str, columns: Sequence[str] = COLUMNS) -> pa.Table:
    """Return the index as `read_index` does, but raise if storage does not answer: callers may overwrite the index.

    Raises:
        DatasetError: storage kept failing to answer.
    """
    uri = storage.join(output, INDEX)
    try:
        content = storage.with_retries(lambda: storage.read_bytes(uri) if storage.exists(uri) else None)
        return _table_of_columns(columns) if content is None else _parse_index(content, digest, columns)
    except DatasetError as error:
        if error.is_transient:
            raise
        return _unused(output, columns, error)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        return _unused(output, columns, error)


def _parse_index(content: bytes, digest: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of an index, given the content of its file.

    Raises:
        DatasetError: the index belongs to another dataset, or lacks a column.
        ArrowException, KeyError, OSError, ValueError: it is damaged.
    """
    parquet = pq.ParquetFile(pa.BufferReader(content))
    if (parquet.schema_arrow.metadata or {}).get(_DIGEST) != digest.encode():
        raise DatasetError("it belongs to another dataset")
    # Equal rows take next to nothing in a file, and all memory when they are read.
    if parquet.metadata.num_rows > _MOST_ROWS or parquet.metadata.num_rows > len(content):
        raise DatasetError(f"it states {parquet.metadata.num_rows} rows in {len(content)} bytes")
    there = set(parquet.schema_arrow.names)
    read = parquet.read(columns=[name for name in columns if name in there])
    return _completed(read, columns).cast(_table_of_columns(columns).schema)


def _unused(output: str, columns: Sequence[str], error: Exception) -> pa.Table:
    uri = storage.join(output, INDEX)
    logger.warning(f"{uri!r} is not used, every part is opened instead: {one_line(error)}")
    return _table_of_columns(columns)


def _table_of_columns(columns: Sequence[str]) -> pa.Table:
    """Return an index without rows."""
    return pa.schema([_SCHEMA.field(name) for name in columns]).empty_table()


def _completed(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return the given columns of an index; those that earlier versions did not write are null.

    Raises:
        DatasetError: another column is missing.
    """
    for name in columns:
        if name not in table.column_names:
            if name not in _LATER_COLUMNS:
                raise DatasetError(f"it has no column {name!r}")
            table = table.append_column(name, pa.nulls(len(table), _SCHEMA.field(name).type))
    return table.select(list(columns))


def num_retried(table: pa.Table) -> int:
    """Return the number of parts of an index that took more than one attempt, as far as that is known."""
    return int(np.sum(table["attempts"].drop_null().to_numpy() > 1))


def write_index(output: str, digest: str, table: pa.Table) -> None:
    """Write the index, in the order of the parts.

    Raises:
        OSError: it could not be written.
    """
    buffer = io.BytesIO()
    ordered = table.sort_by("shard_id").replace_schema_metadata({_DIGEST: digest.encode()})
    pq.write_table(ordered, buffer, compression="zstd")
    storage.write_bytes(storage.join(output, INDEX), buffer.getvalue())


def valid_rows(table: pa.Table, sizes: Mapping[int, int]) -> pa.Table:
    """Return the rows of the index that agree with the part files, one row for each part.

    Args:
        table: rows of the index.
        sizes: shard id → size in bytes of its part in `data/`.
    """
    shard_ids, stated = (table[name].to_numpy() for name in ("shard_id", "bytes"))
    listed = np.array([sizes.get(shard_id, -1) for shard_id in shard_ids.tolist()], np.int64)
    num_rows = table["num_rows"].to_numpy()
    # A stranger's index could state more rows than memory has room for.
    valid = (listed == stated) & (num_rows > 0) & (num_rows <= stated * MOST_ROWS_PER_BYTE)
    valid &= table["row_group_bytes"].to_numpy() > 0
    return last_rows(table.filter(pa.array(valid)))


def last_rows(table: pa.Table) -> pa.Table:
    """Return one row of the index for each part, the last of several, in the order of the parts."""
    shard_ids = table["shard_id"].to_numpy()
    _, from_end = np.unique(shard_ids[::-1], return_index=True)
    return table.take(pa.array(len(shard_ids) - 1 - from_end, pa.int64()))


def indexed_parts(output: str, digest: str, sizes: Mapping[int, int]) -> dict[int, IndexedPart]:
    """Return shard id → facts of its part, for parts that agree with the index."""
    rows = valid_rows(read_index(output, digest, _FOR_READERS), sizes)
    columns = (rows[name].to_pylist() for name in ("shard_id", "num_rows", "row_group_bytes"))
    return {shard_id: IndexedPart(num_rows, size) for shard_id, num_rows, size in zip(*columns, strict=True)}


def unindexed(output: str, digest: str, sizes: Mapping[int, int]) -> list[int]:
    """Return the ids of the parts without a valid row in the index, which must be opened."""
    return parts_without_row(valid_rows(read_index(output, digest, _FOR_READERS), sizes), sizes)


def parts_without_row(rows: pa.Table, sizes: Mapping[int, int]) -> list[int]:
    """Return the ids of the shards whose parts have no row in an index.

    Args:
        rows: valid rows of an index.
        sizes: shard id → size in bytes of its part in `data/`.
    """
    known = set(rows["shard_id"].to_pylist())
    return [shard_id for shard_id in sizes if shard_id not in known]


def complete_index(output: str, digest: str, known: pa.Table, sizes: Mapping[int, int]) -> pa.Table:
    """Return the valid rows of an index and, read from the parts themselves, those of all other parts.

    A part that cannot be read, or has several row groups, gets no row: readers open it, and say what is wrong with it.

    Args:
        output: folder of the dataset.
        digest: digest of the dataset.
        known: rows that are known already; of several rows for a part, the last one counts.
        sizes: shard id → size in bytes of its part in `data/`.
    """
    rows = valid_rows(known, sizes)
    absent = parts_without_row(rows, sizes)
    with ThreadPoolExecutor(storage.READ_THREADS) as threads:
        read = threads.map(lambda shard_id: _row_of_part(output, digest, shard_id, sizes[shard_id]), absent)
        return last_rows(pa.concat_tables([rows, index_table(row for row in read if row is not None)]))


def _row_of_part(output: str, digest: str, shard_id: int, size: int) -> dict[str, Any] | None:
    try:
        return {**storage.with_retries(lambda: read_part_facts(output, digest, shard_id)), "bytes": size}
    except DatasetError:
        return None


def read_part_facts(output: str, digest: str, shard_id: int) -> dict[str, Any]:
    """Return a part's row of the index, as far as the part's own columns tell it. Its images are not read.

    Raises:
        DatasetError: the part cannot be read, lacks a column, or is not one row group.
    """
    uri = part_uri(output, shard_id, digest)
    try:
        with storage.open_file(uri) as file, pq.ParquetFile(file) as parquet:
            size, footer = file.seek(0, os.SEEK_END), parquet.metadata
            table = parquet.read(columns=list(_SUMMED))
    except (pa.ArrowException, ValueError, *storage.read_errors()) as error:
        raise DatasetError(f"cannot read {uri!r}: {one_line(error)}") from error
    absent = set(_SUMMED) - set(table.column_names)
    if absent:
        raise DatasetError(f"{uri!r} has no column {min(absent)!r}, it is no part")
    if footer.num_row_groups != 1:
        raise DatasetError(f"{uri!r} has {footer.num_row_groups} row groups, a part has one")
    return {
        "shard_id": shard_id,
        "num_rows": footer.num_rows,
        "bytes": size,
        "row_group_bytes": footer.row_group(0).total_byte_size,
        **summary_of(table),
    }


def summary_of(table: pa.Table) -> dict[str, Any]:
    """Return a part's classes, and its means over images, as the index has them."""
    return {
        "labels": sorted(set(table["label"].to_pylist())),
        "class_loss": float(np.mean(table["class_loss"].to_numpy())),
        "teacher_confidence": float(np.mean(table["teacher_confidence"].to_numpy())),
    }
