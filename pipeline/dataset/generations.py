"""Parquet files that are there twice, as links, copies or two generations, and numbered ones that are missing."""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.dataset.card import CARD
from pipeline.dataset.listing import Listing, same_files
from pipeline.errors import DatasetError
from pipeline.log import logger

# `train-00000-of-00005.parquet`, `00000-of-00005.parquet`, `train_0_of_5.parquet`.
_NUMBERED = re.compile(r"(.*?)(\d+)[-_]of[-_](\d+)(?!\d)(.*)", re.IGNORECASE)
# Text after the total that tells generations apart: the fingerprint of Hugging Face datasets (16 digits), or a UUID.
_FINGERPRINT = re.compile(r"-([0-9a-f]{16}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})(?=\.)")
# Additions of browsers and file managers to the name of a copy.
_COPY = re.compile(r"(.*?)(?: ?\(\d+\)| - Copy(?: \(\d+\))?| copy(?: \d+)?)(\.parquet)", re.IGNORECASE)
# The cache of Hugging Face's hub has a folder for each revision of a repository.
_REVISION = re.compile(r"(?:.*/)?snapshots/([0-9a-f]{40})/.*")
_ONE = "the same images would be read twice"
_NAME_THEM = f"name those to read, as `data_files` in {CARD} or as URIs"


def check_read_once(uri: str, listing: Listing, names: Sequence[str]) -> None:
    """Refuse Parquet files that hold the same rows again, and warn where they may.

    Args:
        uri: location of the folder.
        listing: entries of the folder.
        names: names of the files that are to be read.

    Raises:
        DatasetError: two names lead to one file, a file is a copy of another by its name and size, there are two
            revisions of a repository in a cache, or as `check_one_generation`.
    """
    for first, second in same_files(uri, listing, names):
        raise DatasetError(f"{uri!r} has {first!r} and {second!r}, one file by a link: {_ONE}, give the URI of one")
    sizes = dict(listing.files)
    for name in names:
        match = _COPY.fullmatch(name)
        original = match and match[1] + match[2]
        if original in sizes and sizes[original] == sizes[name]:
            raise DatasetError(f"{uri!r} has {original!r} and {name!r}, a copy of equal size: {_ONE}, {_NAME_THEM}")
    revisions = sorted({match[1] for match in map(_REVISION.fullmatch, names) if match})
    if len(revisions) > 1:
        raise DatasetError(
            f"{uri!r} holds the revisions {revisions[0]} and {revisions[1]}: {_ONE}, give the URI of one"
        )
    check_one_generation(uri, names)
    _report_namesakes(uri, sizes, names)


def _report_namesakes(uri: str, sizes: Mapping[str, int], names: Iterable[str]) -> None:
    """Warn of files with equal names and sizes in several folders, such as a folder `backup`; it may be chance."""
    found: dict[tuple[str, int], str] = {}
    for name in names:
        first = found.setdefault((posixpath.basename(name), sizes[name]), name)
        if first != name:
            logger.warning(f"{uri!r}: {first!r} and {name!r} have the same size, and both are read: is one a copy?")
            return


def missing_shards(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return (files present, files in total) for each `NAME-00000-of-00005` of which some files are missing."""
    found: dict[tuple[str, int], set[int]] = {}
    for _, (stem, _), number, total in _numbered(names):
        found.setdefault((stem, total), set()).add(number)
    return {stem: (len(numbers), total) for (stem, total), numbers in found.items() if len(numbers) < total}


def report_missing(uri: str, names: Iterable[str]) -> None:
    """Warn of numbered files that are not all there."""
    for name, (there, total) in missing_shards(names).items():
        of = f" of {name!r}" if name else ""
        logger.warning(f"{uri!r} has {there} of the {total} files{of}: the others are missing")


def check_one_generation(uri: str, names: Iterable[str]) -> None:
    """Refuse files that were numbered twice, as `x-00000-of-00001` beside `x-00000-of-00002`: the same rows again.

    A dataset that is written again as more or fewer files leaves the old ones; so does a copy of both. Any other text
    after the total belongs to the name: `rank_0_of_2_00000` and `rank_0_of_2_00001` are two files of one writer.

    Args:
        uri: location of the folder, for messages.
        names: names of the files that are to be read.

    Raises:
        DatasetError: files of one name state different totals, or one number of a total is there twice.
    """
    totals: dict[tuple[str, str], tuple[int, str]] = {}
    numbers: dict[tuple[tuple[str, str], int, int], str] = {}
    for name, stem, number, total in _numbered(names):
        before, example = totals.setdefault(stem, (total, name))
        twice = numbers.setdefault((stem, total, number), name)
        if before != total or twice != name:
            first = example if before != total else twice
            raise DatasetError(
                f"{uri!r} has {first!r} and {name!r}, by their names of two generations of a dataset, which would be "
                f"read as one with images twice: {_NAME_THEM}"
            )


def _numbered(names: Iterable[str]) -> Iterator[tuple[str, tuple[str, str], int, int]]:
    """Yield name, (name before the number with its folder, rest of the name), number and total of numbered files.

    The rest is without fingerprint, and without the mark of a copy, such as ` (1)`.
    """
    for name in names:
        folder, file = posixpath.split(name)
        match = _NUMBERED.fullmatch(file)
        if match:
            stem = posixpath.join(folder, match[1].rstrip("-_. "))
            rest = _FINGERPRINT.sub("", _COPY.sub(r"\1\2", match[4]), count=1)
            yield name, (stem, rest), int(match[2]), int(match[3])
