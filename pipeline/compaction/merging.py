"""Merge parts into one file: the same rows in the same order, a row group for each part."""

import socket
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import schema
from pipeline.dataset.footers import read_footer
from pipeline.dataset.part_files import DATA, holds_parts, merged_metadata, merged_name, part_uri
from pipeline.dataset.store import temporary_folder
from pipeline.errors import DatasetError, one_line

# Keys of a part's metadata that concern the whole dataset, or that names and columns of a merged file state anyway.
_SHARED = (b"huggingface", b"class_names_sha256", b"digest", b"schema_version", b"shard_id")
_AGAIN = "delete it and run the synthesis again"


@dataclass(frozen=True)
class MergedFile:
    """Report of a worker about one file.

    Attributes:
        shard_ids: ids of the shards whose parts the file holds.
        num_rows: number of rows of each part.
        row_group_bytes: size of each part's row group before compression, in bytes.
        made: whether this call wrote the file. If not, the file was there before.
    """

    shard_ids: range
    num_rows: list[int]
    row_group_bytes: list[int]
    made: bool


@dataclass(frozen=True)
class Merger:
    """Writes files of a compacted dataset.

    Attributes:
        images: folder of the dataset.
        output: folder of the compacted dataset.
        digest: digest of the dataset.
        schema_version: version of the dataset's schema.
        class_names: names of the dataset's classes.
    """

    images: str
    output: str
    digest: str
    schema_version: int
    class_names: list[str]

    def uri(self, shard_ids: range) -> str:
        """Return where the file with the parts of some shards belongs."""
        return storage.join(self.output, DATA, merged_name(shard_ids, self.digest))

    def merge(self, shard_ids: range) -> MergedFile:
        """Write the file with the parts of some neighboring shards, unless it is there.

        It holds one part in memory at a time, and on the machine's disk the file.

        Raises:
            DatasetError: a part is missing or damaged, or another file is in the place of this one.
            OSError: the disk is full, or storage kept failing.
        """
        uri = self.uri(shard_ids)
        made = not storage.exists(uri)
        footer = self._write(uri, shard_ids) if made else read_footer(uri)[0]
        if not holds_parts(footer.metadata, footer.num_row_groups, shard_ids, self.digest):
            raise DatasetError(f"{uri!r} does not hold the parts that its name says: delete it, and run this again")
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        sizes = [group.total_byte_size for group in groups]
        return MergedFile(shard_ids, [group.num_rows for group in groups], sizes, made)

    def _write(self, uri: str, shard_ids: range) -> pq.FileMetaData:
        """Write a file, and return its footer."""
        with storage.new_file(uri, temporary_in=temporary_folder(self.output)) as path:
            if len(shard_ids) == 1:
                path.write_bytes(self._read_part(shard_ids[0])[0])
            else:
                self._write_merged(path, shard_ids)
            return pq.read_metadata(path)

    def _write_merged(self, path: Path, shard_ids: range) -> None:
        facts = {"digest": self.digest, "schema_version": str(self.schema_version)}
        columns = schema.part_schema(self.class_names, shard_ids[0], metadata=facts, version=self.schema_version)
        own: dict[int, dict[str, str]] = {}
        with pq.ParquetWriter(path, columns, **schema.parquet_options(columns.names)) as writer:
            for shard_id in shard_ids:
                _, table = self._read_part(shard_id)
                metadata = table.schema.metadata or {}
                own[shard_id] = {k.decode(): v.decode() for k, v in metadata.items() if k not in _SHARED}
                writer.write_table(table.replace_schema_metadata(None), row_group_size=max(1, len(table)))
            writer.add_key_value_metadata(merged_metadata(own))

    def _read_part(self, shard_id: int) -> tuple[bytes, pa.Table]:
        """Return the bytes of a part, and its rows and metadata; images stay encoded.

        Raises:
            DatasetError: the part is missing or damaged, or belongs to another dataset.
            OSError: the part could not be read, in several attempts.
        """
        uri = part_uri(self.images, shard_id, self.digest)
        content = storage.with_retries(lambda: _content(uri))
        try:
            table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        # An OSError too, because Arrow reports some damage with it.
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{uri!r} is damaged, {_AGAIN}: {one_line(error)}") from error
        if not holds_parts(table.schema.metadata, 1, range(shard_id, shard_id + 1), self.digest):
            raise DatasetError(f"{uri!r} is not the part of shard {shard_id} of this dataset: {_AGAIN}")
        if not table.schema.equals(pa.schema(schema.COLUMNS), check_metadata=False):
            raise DatasetError(f"{uri!r} has other columns than a part has: {', '.join(table.column_names)}")
        _check_images(uri, table)
        return content, table


def _check_images(uri: str, table: pa.Table) -> None:
    """Refuse images that are no whole PNG files. Parquet has no checksum of them, and a copy may outlive the original.

    Raises:
        DatasetError: an image is not a whole PNG file.
    """
    encoded = (image for chunk in table["image"].chunks for image in chunk.field("bytes"))
    for image_id, image in zip(table["image_id"].to_pylist(), encoded, strict=True):
        if not image.is_valid or not schema.is_whole_png(memoryview(image.as_buffer())):
            raise DatasetError(f"{uri!r} is damaged, {_AGAIN}: image {image_id!r} is no whole PNG file")


def _content(uri: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        DatasetError: there is no such file.
        OSError: it could not be read; a retry may succeed.
    """
    try:
        with storage.open_file(uri) as file:
            return file.read()
    except FileNotFoundError as error:
        where = f"on {socket.gethostname()}"
        raise DatasetError(f"{uri!r} is not there, {where}: do all machines see it, or was it deleted?") from error
    except storage.read_errors() as error:
        raise OSError(f"cannot read {uri!r}: {one_line(error)}") from error
