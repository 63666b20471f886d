"""Files that are numbered `3 of 5`: which are missing, and which are there in two generations."""

import posixpath
import re
from collections.abc import Iterable, Iterator

from pipeline.errors import DatasetError

# `train-00000-of-00005.parquet`, `00000-of-00005.parquet`, `train_0_of_5.parquet`; what follows may be a fingerprint.
_NUMBERED = re.compile(r"(.*?)(\d+)[-_]of[-_](\d+)(?!\d).*", re.IGNORECASE)


def missing_shards(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return (files present, files in total) for each `NAME-00000-of-00005` of which some files are missing."""
    found: dict[tuple[str, int], set[int]] = {}
    for _, stem, number, total in _numbered(names):
        found.setdefault((stem, total), set()).add(number)
    return {stem: (len(numbers), total) for (stem, total), numbers in found.items() if len(numbers) < total}


def check_one_generation(uri: str, names: Iterable[str]) -> None:
    """Refuse files that were numbered twice, as `x-00000-of-00001` beside `x-00000-of-00002`: the same rows again.

    A dataset that is written anew in more or fewer files leaves those of before; so does a copy of both.

    Args:
        uri: of the folder, for messages.
        names: of the files that are to be read.

    Raises:
        DatasetError: files of one name state different totals, or one number of a total is there twice.
    """
    totals: dict[str, tuple[int, str]] = {}
    numbers: dict[tuple[str, int, int], str] = {}
    for name, stem, number, total in _numbered(names):
        before, example = totals.setdefault(stem, (total, name))
        twice = numbers.setdefault((stem, total, number), name)
        if before != total or twice != name:
            first = example if before != total else twice
            raise DatasetError(
                f"{uri!r} has {first!r} and {name!r}, of two generations of a dataset, which would be read as one with "
                "images twice: delete the files of one of them, or give the URI of one"
            )


def _numbered(names: Iterable[str]) -> Iterator[tuple[str, str, int, int]]:
    """Yield name, name before the number with its folder, number and total of the files that are numbered."""
    for name in names:
        folder, file = posixpath.split(name)
        match = _NUMBERED.fullmatch(file)
        if match:
            stem = posixpath.join(folder, match[1].rstrip("-_. "))
            yield name, stem, int(match[2]), int(match[3])
