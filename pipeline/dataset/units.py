"""Units of reading: a range of rows in a Parquet file, or a group of image files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class RowRange:
    """Rows of one row group of a Parquet file.

    Attributes:
        name: of the file below the source's URI; image ids derive from it.
        first_row: number of the row group's first row in the file.
        start, stop: rows of the row group that belong to the range.
        size: approximate bytes of these rows.
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

    @property
    def facts(self) -> list[Any]:
        """Return what identifies the rows without reading them; it enters the digests of runs."""
        return [self.name, self.row_group, self.start, self.stop, self.size]

    def split(self, parts: int) -> list["RowRange"]:
        edges = [self.start + self.num_rows * part // parts for part in range(parts + 1)]
        return [
            replace(self, start=start, stop=stop, size=self.size // parts)
            for start, stop in pairwise(edges)
            if stop > start
        ]

    def select(self, rows: Sequence[int]) -> "RowRange":
        """Return the range from the first to the last of the given rows, which are numbered from 0, ascending."""
        start, stop = self.start + rows[0], self.start + rows[-1] + 1
        size = self.size * (stop - start) // self.num_rows
        return replace(self, start=start, stop=stop, size=size)


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
