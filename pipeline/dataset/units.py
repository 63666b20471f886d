"""Units of reading: a range of rows in a Parquet file, or a group of image files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

# Row groups are not cut if readers of their pieces would fetch more than this in total.
MOST_BYTES_IN_PIECES = 64 * 2**20


@dataclass(frozen=True)
class RowRange:
    """Rows of one row group of a Parquet file.

    Attributes:
        name: name of the file below the source's URI, from which image ids derive.
        first_row: number that the row group's first row has in the file.
        start, stop: first row of the range within the row group, and the first row after it.
        size: size of these rows in bytes, approximately.
        row_group_bytes: size of the whole row group in bytes; 0 if the range is all of it.
    """

    uri: str
    name: str
    row_group: int
    first_row: int
    start: int
    stop: int
    size: int
    row_group_bytes: int = field(default=0, compare=False)

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def fetched_bytes(self) -> int:
        """Return how many bytes a reader of these rows fetches: those of the whole row group."""
        return self.row_group_bytes or self.size

    @property
    def facts(self) -> list[Any]:
        """Return what identifies the rows without reading them; it enters the digests of runs."""
        return [self.name, self.row_group, self.start, self.stop, self.size]

    def split(self, parts: int) -> list["RowRange"]:
        edges = [self.start + self.num_rows * part // parts for part in range(parts + 1)]
        return [
            replace(self, start=start, stop=stop, size=self.size // parts, row_group_bytes=self.fetched_bytes)
            for start, stop in pairwise(edges)
            if stop > start
        ]

    def select(self, rows: Sequence[int]) -> "RowRange":
        """Return the range from the first to the last of the given rows, which are numbered from 0, ascending."""
        start, stop = self.start + rows[0], self.start + rows[-1] + 1
        size = self.size * (stop - start) // self.num_rows
        return replace(self, start=start, stop=stop, size=size, row_group_bytes=self.fetched_bytes)


@dataclass(frozen=True)
class ImageFiles:
    """Some files of an image folder, as (URI, name below the folder, label or None), and their bytes in total."""

    files: tuple[tuple[str, str, int | None], ...]
    size: int

    @property
    def num_rows(self) -> int:
        return len(self.files)

    @property
    def facts(self) -> list[Any]:
        """Return what identifies the files without reading them; it enters the digests of runs."""
        return [[name for _, name, _ in self.files], self.size]

    def split(self, parts: int) -> list["ImageFiles"]:
        edges = [self.num_rows * part // parts for part in range(parts + 1)]
        return [
            ImageFiles(self.files[start:stop], self.size // parts) for start, stop in pairwise(edges) if stop > start
        ]

    def select(self, rows: Sequence[int]) -> "ImageFiles":
        """Return the given files, which are numbered from 0, ascending."""
        return ImageFiles(tuple(self.files[row] for row in rows), self.size * len(rows) // self.num_rows)


Unit = RowRange | ImageFiles


def split_units(units: Sequence[tuple[int, Unit]], pieces: Sequence[int]) -> list[tuple[int, Unit]]:
    """Cut units of a collection into pieces.

    A reader of some rows of a row group fetches all of it. So no row group is cut if that would fetch too many bytes
    in total: pandas may write gigabytes as one.

    Args:
        units: units, each with the index of its source.
        pieces: number of pieces to cut each unit into.
    """
    fetched = sum(
        unit.fetched_bytes * count
        for (_, unit), count in zip(units, pieces, strict=True)
        if isinstance(unit, RowRange) and count > 1
    )
    whole = fetched > MOST_BYTES_IN_PIECES
    return [
        (number, piece)
        for (number, unit), count in zip(units, pieces, strict=True)
        for piece in unit.split(1 if whole and isinstance(unit, RowRange) else count)
    ]
