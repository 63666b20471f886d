"""What a URI holds: a synthetic dataset, Parquet files with an image column, or a folder of images.

Everything is looked at before any work starts: a truncated or foreign file is told at once, by name.
"""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import schema, store
from pipeline.dataset.columns import column_types
from pipeline.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# Footers are small and far away: many at a time.
_FOOTER_THREADS = 32
# Image files that are read together when nothing else is asked for.
_IMAGES_A_UNIT = 128


@dataclass(frozen=True)
class RowRange:
    """Rows of one row group of a Parquet file.

    Attributes:
        name: of the file under the source's URI; image ids derive from it.
        first_row: number in the file of the row group's first row.
        start, stop: rows of the row group that belong to the range.
        size: their bytes, about.
    """

    uri: str
    name: str
    row_group: int
    first_row: int
    start: int
    stop: int
    size: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    def split(self, parts: int) -> list["RowRange"]:
        edges = [self.start + self.num_rows * part // parts for part in range(parts + 1)]
        return [
            RowRange(self.uri, self.name, self.row_group, self.first_row, start, stop, self.size // parts)
            for start, stop in pairwise(edges)
            if stop > start
        ]


@dataclass(frozen=True)
class ImageFiles:
    """Some of the files of an image folder: (URI, name under the folder, label or None), and their bytes together."""

    files: tuple[tuple[str, str, int | None], ...]
    size: int

    @property
    def num_rows(self) -> int:
        return len(self.files)

    def split(self, parts: int) -> list["ImageFiles"]:
        edges = [self.num_rows * part // parts for part in range(parts + 1)]
        return [
            ImageFiles(self.files[start:stop], self.size // parts) for start, stop in pairwise(edges) if stop > start
        ]


Unit = RowRange | ImageFiles


@dataclass(frozen=True)
class Source:
    """Images at a URI, found to be readable.

    Attributes:
        uri: as given.
        columns: name → Arrow type as it will be read, `image` being encoded bytes.
        class_names: of labels 0, 1, 2, ...; None where nothing tells them.
        synthetic: made by inversion: pixels are on the teacher's grid, and are not to be resized.
        units: what is read together.
        manifest: of a synthetic dataset, where there is one.
    """

    uri: str
    columns: dict[str, pa.DataType]
    class_names: list[str] | None
    synthetic: bool
    units: list[Unit]
    manifest: dict[str, Any] | None = None

    @property
    def num_rows(self) -> int:
        return sum(unit.num_rows for unit in self.units)

    def check_complete(self) -> None:
        """Refuse a synthetic dataset that is still being made, or whose making was cut off.

        Raises:
            DatasetError: shards are missing.
        """
        wanted = (self.manifest or {}).get("num_images", self.num_rows)
        if self.num_rows < wanted:
            raise DatasetError(
                f"synthetic dataset {self.uri!r} is incomplete: it holds {self.num_rows} of {wanted} images; "
                "run its synthesis again, or set allow_incomplete to take what there is"
            )


def find_source(uri: str, extra_columns: Sequence[str] = ()) -> Source:
    """Find out what a URI holds, and check all of it that can be checked without reading images.

    Args:
        uri: a synthetic dataset, a Parquet file or a folder of them, or a folder of images, with one subfolder a class
            or none.
        extra_columns: columns of Parquet files to read besides the contract's.

    Raises:
        DatasetError: nothing there, no images in it, or a truncated, foreign or mixed file; the message names it.
    """
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise DatasetError(f"no dataset at {uri!r}: there is no such file or folder")
    if storage.exists(store.manifest_uri(uri)):
        return _synthetic(uri, extra_columns)
    files = storage.find_files(uri)
    parquet = [(name, size) for name, size in files if name.endswith(".parquet") or name == ""]
    if parquet:
        return _parquet(uri, [name for name, _ in parquet], extra_columns)
    images = [(name, size) for name, size in files if name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise DatasetError(f"no dataset at {uri!r}: neither Parquet files nor images are in it")
    if extra_columns:
        raise DatasetError(f"{uri!r} is a folder of images: it has no column {extra_columns[0]!r}")
    return _image_folder(uri, images)


def _synthetic(uri: str, extra_columns: Sequence[str]) -> Source:
    manifest = store.read_manifest(uri)
    done = store.done_shards(uri, manifest["digest"])
    if not done:
        raise DatasetError(f"synthetic dataset {uri!r} has no parts yet")
    names = [f"data/{store.part_name(shard_id, manifest['digest'])}" for shard_id in done]
    source = _parquet(uri, names, extra_columns)
    absent = sorted(set(schema.COLUMNS) - set(source.columns))
    if absent:
        raise DatasetError(f"synthetic dataset {uri!r}: its parts have no column {absent[0]!r}")
    class_names = [str(name) for name in manifest["class_names"]]
    return Source(uri, source.columns, class_names, True, source.units, manifest)


def _parquet(uri: str, names: list[str], extra_columns: Sequence[str]) -> Source:
    with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
        footers = list(threads.map(lambda name: _read_footer(_file_uri(uri, name)), names))
    first = footers[0].schema.to_arrow_schema()
    columns = column_types(_file_uri(uri, names[0]), first, extra_columns)
    class_names = schema.class_names_of(first)
    units: list[Unit] = []
    for name, footer in zip(names, footers, strict=True):
        file_uri, file_schema = _file_uri(uri, name), footer.schema.to_arrow_schema()
        if column_types(file_uri, file_schema, extra_columns) != columns:
            raise DatasetError(f"{file_uri!r} has other columns than {_file_uri(uri, names[0])!r}")
        if schema.class_names_of(file_schema) != class_names:
            raise DatasetError(f"{file_uri!r} has other class names than {_file_uri(uri, names[0])!r}")
        units.extend(_row_groups(file_uri, name, footer))
    if not units:
        raise DatasetError(f"{uri!r} has no rows")
    return Source(uri, columns, class_names, "keep_indices" in columns, units)


def damaged_parts(output: str, digest: str, shard_ids: Sequence[int]) -> dict[int, str]:
    """Shard id → reason, of those parts that are not what their names say: cut off when they were copied, say."""

    def reason(shard_id: int) -> str | None:
        try:
            uri = store.part_uri(output, shard_id, digest)
            facts = _read_footer(uri).metadata or {}
            if (facts.get(b"digest"), facts.get(b"shard_id")) != (digest.encode(), str(shard_id).encode()):
                return f"{uri!r} is not a part of this dataset: its metadata names another shard or none"
        except DatasetError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
        reasons = zip(shard_ids, threads.map(reason, shard_ids), strict=True)
        return {shard_id: text for shard_id, text in reasons if text is not None}


def _file_uri(uri: str, name: str) -> str:
    return storage.join(uri, name) if name else uri


def _read_footer(uri: str) -> pq.FileMetaData:
    try:
        with storage.open_file(uri) as file:
            return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{uri!r} is not a whole Parquet file: {reason}") from error


def _row_groups(uri: str, name: str, footer: pq.FileMetaData) -> Iterator[RowRange]:
    first_row = 0
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        if group.num_rows:
            yield RowRange(uri, name, index, first_row, 0, group.num_rows, group.total_byte_size)
        first_row += group.num_rows


def _image_folder(uri: str, images: list[tuple[str, int]]) -> Source:
    folders = sorted({posixpath.dirname(name) for name, _ in images})
    if "" in folders and len(folders) > 1:
        stray = next(name for name, _ in images if "/" not in name)
        raise DatasetError(f"{uri!r} has class subfolders and, beside them, the image {stray!r}")
    nested = [folder for folder in folders if "/" in folder]
    if nested:
        raise DatasetError(f"{uri!r}: images must lie in class subfolders, not deeper as in {nested[0]!r}")
    named = folders != [""]
    labels = {folder: label if named else None for label, folder in enumerate(folders)}
    units = [
        ImageFiles(
            tuple((storage.join(uri, name), name, labels[posixpath.dirname(name)]) for name, _ in chunk),
            sum(size for _, size in chunk),
        )
        for chunk in _chunks(images, _IMAGES_A_UNIT)
    ]
    columns = {"image": pa.binary(), "image_id": pa.string()}
    if named:
        columns["label"] = pa.int64()
    return Source(uri, columns, folders if named else None, False, list(units))


def _chunks(items: list[tuple[str, int]], size: int) -> Iterable[list[tuple[str, int]]]:
    return (items[start : start + size] for start in range(0, len(items), size))
