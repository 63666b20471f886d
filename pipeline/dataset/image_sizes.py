"""Recognize folders and files that hold the same images at several sizes, as `160px/` and `320px/`."""

import re
from collections.abc import Collection, Iterable
from itertools import pairwise

from pipeline.errors import DatasetError
from pipeline.log import logger

_NUMBER = r"(?:1[6-9]|[2-9]\d|\d{3,4})"
_SIZE = (
    rf"(?:{_NUMBER}(?:px|pix|pixels?)|\d{{3,4}}p|{_NUMBER}x{_NUMBER}"
    rf"|(?:size|res|resolution|px)[-_ ]?{_NUMBER})"
)
_SIZE_IN_NAME = re.compile(rf"(?<![a-z0-9]){_SIZE}(?![a-z0-9])", re.IGNORECASE)
_SIZE_FOLDER = re.compile(rf"(?:(?:images?|imgs?|photos?|pictures?|data)[-_ ]?)?{_SIZE}", re.IGNORECASE)
_INSTEAD = "probably the same images at several sizes: give the URI of one"


def check_one_size(uri: str, names: Iterable[str]) -> None:
    """Refuse Parquet files whose names or folders state different sizes: `train/160px/0.parquet`, `train/320px/...`.

    Raises:
        DatasetError: the files state different sizes.
    """
    found: dict[frozenset[str], str] = {}
    for name in names:
        found.setdefault(frozenset(map(str.lower, _SIZE_IN_NAME.findall(name))), name)
    stating = [name for sizes, name in found.items() if sizes]
    if len(stating) > 1:
        raise DatasetError(f"{uri!r} has {stating[0]!r} and {stating[1]!r}, {_INSTEAD}")


def check_no_size_folders(uri: str, folders: Collection[str]) -> None:
    """Refuse folders that would be read as classes, and are all named like sizes of images: `160px` and `320px`.

    Args:
        uri: location of the images, for messages.
        folders: folders below the location, of which the last name counts.

    Raises:
        DatasetError: all folders are named like sizes.
    """
    if folders and all(_SIZE_FOLDER.fullmatch(folder.rpartition("/")[2]) for folder in folders):
        first, *others = sorted(folders)
        if others:
            raise DatasetError(f"{uri!r} has {first!r} and {others[0]!r}, {_INSTEAD}")
        raise DatasetError(f"{uri!r}: the folder {first!r} is named like a size of images, not a class: give its URI")


def report_gaps(uri: str, folders: Iterable[str]) -> None:
    """Warn that folders named by a number alone are read as one set though they are not numbered through.

    `0`, `1`, `2` are parts of a set; `64`, `128` may be sizes.
    """
    numbers = sorted({int(folder) for folder in folders if folder.isdecimal()})
    gap = next((pair for pair in pairwise(numbers) if pair[1] - pair[0] > 1), None)
    if gap is not None:
        logger.warning(
            f"{uri!r}: the folders {gap[0]} and {gap[1]} are not numbered consecutively, and are read as one set; if "
            "they are sizes of the same images, give the URI of one"
        )
