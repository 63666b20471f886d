"""Read some parts of a synthetic dataset in this process, for pages and summaries."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import store
from pipeline.errors import DatasetError, one_line

_READ_THREADS = 16


def evenly(items: Sequence[int], count: int) -> list[int]:
    """Return at most `count` items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def read_parts(output: str, digest: str, rows: Mapping[int, Sequence[int] | None], columns: Sequence[str]) -> pa.Table:
    """Return some columns of some rows, in the order given.

    Args:
        output: folder of the dataset.
        digest: digest of the dataset.
        rows: id of a finished shard → numbers of rows in its part, or None for all rows; at least one shard.
        columns: columns of the contract to read.

    Raises:
        DatasetError: a part cannot be read.
    """

    def read(shard_id: int) -> pa.Table:
        uri = store.part_uri(output, shard_id, digest)
        table = storage.with_retries(lambda: _read_part(uri, columns))
        chosen = rows[shard_id]
        return table if chosen is None else table.take(list(chosen))

    with ThreadPoolExecutor(_READ_THREADS) as threads:
        return pa.concat_tables(list(threads.map(read, rows)))


def _read_part(uri: str, columns: Sequence[str]) -> pa.Table:
    try:
        with storage.open_file(uri) as file:
            # Parts differ in their metadata, and some in class names.
            return pq.ParquetFile(file).read(columns=list(columns)).replace_schema_metadata(None)
    except (pa.ArrowException, *storage.read_errors()) as error:
        raise DatasetError(f"cannot read {uri!r}: {one_line(error)}") from error
