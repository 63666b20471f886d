"""Splits of a dataset (train, validation, test): where Hugging Face datasets and torchvision expect them."""

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pipeline.errors import DatasetError

# As Hugging Face datasets knows them.
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CANONICAL = {keyword: split for split, keywords in KEYWORDS.items() for keyword in keywords}
_SEPARATORS = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\b.*", re.IGNORECASE)
HOW_TO_CHOOSE = "choose one with images_split or labelled_split (in Python: split)"


@dataclass(frozen=True)
class Splits:
    """Files of each split, and of none.

    Attributes:
        files: split → names of its files, as they were given.
        others: names of files of no split.
    """

    files: Mapping[str, list[str]]
    others: list[str]


def parquet_splits(names: Iterable[str]) -> Splits:
    """Group Parquet files by split: `NAME-00000-of-00005.parquet`, else a keyword in the file's or a folder's name.

    A keyword counts where no letter is beside it: `mnist_train.parquet` and `val2/`, and not `contest.parquet`.
    """
    files: dict[str, list[str]] = {}
    others = []
    for name in names:
        split = _split_of_file(name)
        (others if split is None else files.setdefault(split, [])).append(name)
    return Splits(files, others)


def folder_splits(images: Collection[str]) -> Splits:
    """Group the images of a folder by split: `train/CLASS/x.png`, or `train/x.png` without classes.

    The folders are splits only if all are named so: a class may be called `train`.
    """
    tops: dict[str, list[str]] = {}
    for name in images:
        tops.setdefault(name.partition("/")[0] if "/" in name else "", []).append(name)
    nested = any(name.count("/") > 1 for name in images)
    named = [top for top in tops if (_word_in(top) is not None if nested else top.lower() in _CANONICAL)]
    return Splits(tops, []) if len(named) == len(tops) else Splits({}, list(images))


def choose_split(uri: str, splits: Splits, wanted: str | None) -> tuple[str | None, list[str]]:
    """Return the split to read, and its files; None and all files where there are no splits.

    Args:
        uri: for messages.
        splits: what is there.
        wanted: name of a split, or another word for it (`val` for `validation`).

    Raises:
        DatasetError: there is no such split, or there are several and none is wanted.
    """
    found = ", ".join(f"{split!r}" for split in sorted(splits.files))
    if wanted is not None:
        same = [split for split in splits.files if split == wanted] or [
            split for split in splits.files if _canonical(split) == _canonical(wanted)
        ]
        if len(same) != 1:
            there = f"its splits are {found}" if found else "it has no splits"
            raise DatasetError(f"{uri!r} has no split {wanted!r}: {there}")
        return same[0], splits.files[same[0]]
    if not splits.files:
        return None, splits.others
    if len(splits.files) > 1:
        raise DatasetError(f"{uri!r} has the splits {found}: {HOW_TO_CHOOSE}")
    ((split, files),) = splits.files.items()
    if splits.others:
        raise DatasetError(
            f"{uri!r} has files of the split {split!r} and of none, such as {splits.others[0]!r}: "
            f"{HOW_TO_CHOOSE}, or give the URI of one file"
        )
    return split, files


def missing_shards(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return how many of how many files are there, for each `NAME-00000-of-00005` of which some are absent."""
    found: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = _SHARD.fullmatch(name)
        if match:
            found.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    return {name: (len(shards), total) for (name, total), shards in found.items() if len(shards) < total}


def check_one_dataset(uri: str, split: str | None, names: Iterable[str]) -> None:
    """Refuse numbered files of one split in several folders, as of a dataset in several configurations.

    Raises:
        DatasetError: there are such.
    """
    folders = sorted({posixpath.dirname(name) for name in names if _SHARD.fullmatch(posixpath.basename(name))})
    if split is not None and _word_in(split) and len(folders) > 1:
        raise DatasetError(
            f"{uri!r} has numbered files of the split {split!r} in several folders, "
            f"{folders[0]!r} and {folders[1]!r} among them: give the URI of one"
        )


def _split_of_file(name: str) -> str | None:
    folder, file = posixpath.split(name)
    shard = _SHARD.fullmatch(file)
    if shard:
        return shard[1]
    # What is nearest to the rows says most.
    words = map(_word_in, [posixpath.splitext(file)[0], *reversed(folder.split("/"))])
    return next((word for word in words if word is not None), None)


def _word_in(name: str) -> str | None:
    """Return the split that a name holds a keyword of; None for none, or for keywords of several splits."""
    found = {_CANONICAL[word] for word in _SEPARATORS.split(name.lower()) if word in _CANONICAL}
    return found.pop() if len(found) == 1 else None


def _canonical(split: str) -> str:
    return _word_in(split) or split.lower()
