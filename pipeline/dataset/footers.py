"""Read Parquet footers, and keep the few facts needed of each: a footer itself may take megabytes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import schema
from pipeline.dataset.columns import column_types, likely_labels, unread_ids
from pipeline.errors import DamagedError, DatasetError, as_line, one_line
from pipeline.file_kinds import recognize_foreign
from pipeline.transient import is_forbidden

# Number of bytes that are read of a file that is no Parquet file, enough to recognize what it is.
_HEAD_BYTES = 1024
# Even equal rows take space for their pages. Plans list rows, so a number without any would take all memory.
MOST_ROWS_PER_BYTE = 1000
# Parquet's names of the values of the image column.
_IMAGE_VALUES = ("image", "image.bytes")


@dataclass(frozen=True)
class FileFacts:
    """Facts from a Parquet file's footer.

    Attributes:
        uri: location of the file.
        columns: name → Arrow type as it will be read (for `image`, encoded bytes); empty if there are no rows.
        class_names: names of labels 0, 1, 2, ..., if the file holds them.
        names_digest: digest of the class names, if the file holds names or digest.
        row_groups: number of rows and bytes of each row group.
        likely_labels: name and type of a column that may be meant as `label`, or of a `label` that is no number;
            None if there is neither, or a `label` that is read.
        unread_ids: name and type of a column `image_id` whose values are no ids.
    """

    uri: str
    columns: dict[str, pa.DataType]
    class_names: tuple[str, ...] | None
    names_digest: str | None
    row_groups: tuple[tuple[int, int], ...]
    likely_labels: str | None
    unread_ids: str | None


def read_facts(uris: Sequence[str], extra_columns: Sequence[str] = ()) -> Iterator[FileFacts]:
    """Read the footers of Parquet files with images, many at a time, and yield the facts in the order of the files.

    Args:
        uris: locations of the files.
        extra_columns: columns to read besides those of the contract.

    Raises:
        DatasetError: a file is truncated or foreign, lacks a column, or has rows without an image according to its
            statistics; the message names it.
    """
    # The first is read alone: the others usually repeat its columns and class names, and then share its objects.
    first = _read_one(uris[0], extra_columns)
    yield first

    def read(uri: str) -> FileFacts:
        facts = _read_one(uri, extra_columns)
        return replace(facts, columns=first.columns) if facts.columns == first.columns else facts

    with ThreadPoolExecutor(storage.READ_THREADS) as threads:
        yield from threads.map(read, uris[1:])


def _read_one(uri: str, extra_columns: Sequence[str]) -> FileFacts:
    footer, file_schema = read_footer(uri)
    metadata = footer.metadata or {}
    _check_no_nulls(uri, footer)
    groups = (footer.row_group(index) for index in range(footer.num_row_groups))
    return FileFacts(
        uri,
        # Without rows the column types mean nothing: pandas gives columns without values the type null.
        column_types(uri, file_schema, extra_columns) if footer.num_rows else {},
        schema.class_names_of(metadata),
        schema.names_digest_of(metadata),
        tuple((group.num_rows, group.total_byte_size) for group in groups),
        likely_labels(file_schema),
        unread_ids(file_schema),
    )


def _check_no_nulls(uri: str, footer: pq.FileMetaData) -> None:
    """Refuse rows without an image early, if the file's statistics count them.

    Raises:
        DatasetError: the file has rows without an image.
    """
    if not footer.num_row_groups:
        return
    group = footer.row_group(0)
    names = [group.column(index).path_in_schema for index in range(group.num_columns)]
    column = next((index for index, name in enumerate(names) if name in _IMAGE_VALUES), None)
    first_row = 0
    for number in range(footer.num_row_groups if column is not None else 0):
        group = footer.row_group(number)
        statistics = group.column(column).statistics
        if statistics is not None and statistics.has_null_count and statistics.null_count:
            last_row = first_row + group.num_rows - 1
            raise DatasetError(
                f"{uri!r} has no bytes of the image in {statistics.null_count} of the rows {first_row} to {last_row}: "
                "leave these rows out, or, if they hold paths, store the image files themselves"
            )
        first_row += group.num_rows


def read_footer(uri: str) -> tuple[pq.FileMetaData, pa.Schema]:
    """Return a Parquet file's metadata and its Arrow schema.

    Raises:
        DamagedError: the file is no whole Parquet file, or states more rows than it can hold.
        DatasetError: the file cannot be read, and may be whole: the store did not answer, or refused.
    """
    try:
        with storage.open_file(uri) as file, pq.ParquetFile(file) as parquet:
            size = file.seek(0, os.SEEK_END)
            # `metadata.schema` is not used: it is a reference cycle, which keeps megabytes until garbage is collected.
            footer, file_schema = parquet.metadata, parquet.schema_arrow
    # A ValueError comes from a web server that does not serve parts of files.
    except (pa.ArrowException, ValueError, *storage.read_errors()) as error:
        if _is_of_content(error):
            foreign = _foreign(uri)
            whole = f"is not a whole Parquet file: {as_line(error)}"
            raise DamagedError(f"{uri!r} {foreign or whole}") from error
        raise DatasetError(f"cannot read {uri!r}: {one_line(error)}") from error
    if footer.num_rows > size * MOST_ROWS_PER_BYTE:
        raise DamagedError(f"{uri!r} states {footer.num_rows} rows in {size} bytes: it is damaged, or made to harm")
    return footer, file_schema


def _is_of_content(error: BaseException) -> bool:
    # pyarrow's errors about content are an `ArrowException` or an `OSError` without errno; those of file systems and
    # stores have an errno, are of a subclass, forbid, or come from an error of their driver.
    plain = type(error) is OSError and error.errno is None and error.__cause__ is None and not is_forbidden(error)
    return isinstance(error, pa.ArrowException) or plain


def _foreign(uri: str) -> str | None:
    """Say what a file is instead of a Parquet file, as the rest of a sentence; None if it may have been one."""
    try:
        with storage.open_file(uri) as file:
            head = file.read(_HEAD_BYTES)
    except storage.read_errors():
        return None
    return recognize_foreign(head, "a Parquet file", whole=False)
