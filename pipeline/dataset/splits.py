"""Find the splits of a dataset (train, validation, test), as Hugging Face datasets and torchvision lay them out."""

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pipeline.dataset.image_sizes import check_one_size, report_gaps
from pipeline.errors import DatasetError

# The keywords of Hugging Face datasets.
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CANONICAL = {keyword: split for split, keywords in KEYWORDS.items() for keyword in keywords}
_WORDS = re.compile(r"[^\W\d_]+")
# Cuts `imagenetTrain` into two words.
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\b.*", re.IGNORECASE)
# A folder of a table partitioned as in Spark and Hive: `split=train`, `date=2026-01-01`.
_PARTITION = re.compile(r"([^=]+)=(.*)")
# Folders that are no configurations: partitions and days.
_NO_CONFIGURATION = re.compile(r"(?!config)[^=]+=.*|\d{4}-\d\d-\d\d", re.IGNORECASE)
# A name that is cut into more words is random letters.
_MAX_WORDS = 5
_NUMBERS = re.compile(r"\d+")
HOW_TO_CHOOSE = "choose one with images_split or labeled_split (in Python: split)"
_INSTEAD = "give the URI of one, or rename them as docs/images.md has it"


@dataclass(frozen=True)
class Splits:
    """Files by split, and files that belong to none.

    Attributes:
        files: split → names of its files, as they were given.
        others: names of files that belong to no split.
    """

    files: Mapping[str, list[str]]
    others: list[str]


def parquet_splits(names: Collection[str]) -> Splits:
    """Group Parquet files by split: `NAME-00000-of-00005.parquet`, else a keyword in the file's or a folder's name.

    A keyword counts if no letter is next to it: `mnist_train.parquet` and `val2/`, but not `contest.parquet`. Numbered
    files whose NAME holds no keyword and is the same in all folders belong to the split that their folder names:
    `train/part-00000-of-00002.parquet`.
    """
    numbered = _split_folders_of_numbered(names)
    files: dict[str, list[str]] = {}
    others = []
    for name in names:
        split = _split_of_file(name)
        by_folder = numbered.get(split or "", ())
        if len(by_folder) > 1 or (by_folder and len(numbered) == 1):
            split = _split_of_segments(_segments(name)[1:])
        (others if split is None else files.setdefault(split, [])).append(name)
    return Splits(files, others)


def folder_splits(images: Collection[str]) -> Splits:
    """Group the images of a folder by split: `train/CLASS/x.png`, or `train/x.png` without classes.

    The folders are splits only if all of them are named so, because a class may be called `train`. If there are no
    class folders below them, their names must be bare keywords, or name different splits: `train2017/x.png` and
    `val2017/x.png`.
    """
    tops = _top_folders(images)
    found = {_word_in(top) for top in tops}
    nested = any(name.count("/") > 1 for name in images)
    are_splits = None not in found and (nested or len(found) > 1 or all(top.lower() in _CANONICAL for top in tops))
    return Splits(tops, []) if are_splits else Splits({}, list(images))


def choose_split(uri: str, splits: Splits, wanted: str | None) -> tuple[str | None, list[str]]:
    """Return the split to read, and its files; None and all files if there are no splits.

    Args:
        uri: location of the files, for messages.
        splits: the splits that were found.
        wanted: name of a split, or a synonym (`val` for `validation`); None if the user chose none.

    Raises:
        DatasetError: there is no such split, or there are several splits and the user chose none.
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
            f"{uri!r} has files of the split {split!r} and files of no split, such as {splits.others[0]!r}: "
            f"{HOW_TO_CHOOSE}, or give the URI of one file"
        )
    return split, files


def check_one_dataset(uri: str, split: str | None, names: Iterable[str]) -> None:
    """Refuse files of one split in several folders, which are probably several configurations of a dataset.

    Hugging Face lays these out as `CONFIGURATION/SPLIT/0000.parquet` or `CONFIGURATION/SPLIT-00000-of-00001.parquet`.
    The folder that names the split does not count as one of them, nor does a partition (`key=value`) or a day
    (`2026-01-31`). Folders below it count as one if they differ only in numbers (`train/shard_7/`) that are no sizes of
    images. Files of no split may lie anywhere, but for such sizes.

    Raises:
        DatasetError: files of a split lie in several such folders, or are named by several sizes of images.
    """
    names = list(names)
    if split is not None and _word_in(split) is not None:
        found: dict[tuple[str, str], str] = {}
        for name in names:
            above, below = _folders_around_split(name)
            found.setdefault((above, _NUMBERS.sub("0", below)), "/".join(filter(None, (above, below))))
        if len(found) > 1:
            first, second = sorted(found.values())[:2]
            raise DatasetError(
                f"{uri!r} has files of the split {split!r} in several folders, {first!r} and {second!r} among them, "
                "which may be several configurations of a dataset: give the URI of one"
            )
        report_gaps(uri, {_folders_around_split(name)[1] for name in names})
    check_one_size(uri, names)


def check_no_hidden_splits(uri: str, names: Iterable[str]) -> None:
    """Refuse Parquet files without a split whose names suggest different ones: `trainset/` and `testset/`.

    Raises:
        DatasetError: the names do.
    """
    found: dict[frozenset[str], str] = {}
    for name in names:
        found.setdefault(frozenset().union(*map(_hints_in, _segments(name))), name)
    # `latest/value.parquet` suggests two splits by accident. If all files suggest the same two, they are one set.
    hinting = [name for hints, name in found.items() if hints]
    if len(hinting) > 1 and len(frozenset().union(*found)) > 1:
        raise DatasetError(_suggests_splits(uri, hinting))


def check_no_hidden_split_folders(uri: str, images: Collection[str]) -> None:
    """Refuse image folders that would be read as classes, but whose names all suggest a split: `trainA/` and `testA/`.

    Raises:
        DatasetError: the names suggest different splits.
    """
    hints = {top: _hints_in(top) for top in _top_folders(images)}
    if all(hints.values()) and len(frozenset().union(*hints.values())) > 1:
        raise DatasetError(_suggests_splits(uri, list(hints)))


def _suggests_splits(uri: str, names: list[str]) -> str:
    return f"{uri!r}: {names[0]!r} and {names[1]!r} are named like different splits: {_INSTEAD}"


def _top_folders(images: Iterable[str]) -> dict[str, list[str]]:
    """Return top folder → images below it; `""` for images outside of any folder."""
    tops: dict[str, list[str]] = {}
    for name in images:
        tops.setdefault(name.partition("/")[0] if "/" in name else "", []).append(name)
    return tops


def _segments(name: str) -> list[str]:
    """Return a file's name without suffix, then its folders from the nearest up: the nearest names matter most."""
    folder, file = posixpath.split(name)
    return [posixpath.splitext(file)[0], *reversed(folder.split("/"))]


def _split_of_file(name: str) -> str | None:
    shard = _SHARD.fullmatch(posixpath.basename(name))
    return shard[1] if shard else _split_of_segments(_segments(name))


def _split_of_segments(segments: Iterable[str]) -> str | None:
    return next((word for word in map(_word_in, segments) if word is not None), None)


def _split_folders_of_numbered(names: Iterable[str]) -> dict[str, set[str]]:
    """Return NAME of numbered files → splits that the folders of these files name; only names without a keyword."""
    found: dict[str, set[str]] = {}
    for name in names:
        shard = _SHARD.fullmatch(posixpath.basename(name))
        if shard and _word_in(shard[1]) is None:
            split = _split_of_segments(_segments(name)[1:])
            found.setdefault(shard[1], set()).update(() if split is None else (split,))
    return found


def _folders_around_split(name: str) -> tuple[str, str]:
    """Return the folders above and below the one that names a file's split, without partitions and days."""
    own, *folders = _segments(name)
    depth = 0 if _word_in(own) else next((depth for depth, one in enumerate(folders, 1) if _word_in(one)), 0)
    below, above = folders[: max(0, depth - 1)], folders[depth:]
    return _join_folders(above), _join_folders(below)


def _join_folders(nearest_first: list[str]) -> str:
    kept = [folder for folder in nearest_first if not _NO_CONFIGURATION.fullmatch(folder)]
    return "/".join(reversed(kept))


def _word_in(name: str) -> str | None:
    """Return the split whose keyword a name holds; None if it holds none, or keywords of several splits.

    In a partition only the value counts: `split=train`, but not `is_train=0`.
    """
    partition = _PARTITION.fullmatch(name)
    if partition:
        name = "" if partition[1].lower() == "label" else partition[2]
    found = {_CANONICAL[word] for word in _WORDS.findall(name.lower()) if word in _CANONICAL}
    return found.pop() if len(found) == 1 else None


def _hints_in(name: str) -> frozenset[str]:
    """Return the splits whose keywords some word in a name begins or ends with; `is_train=0` counts as a whole."""
    partition = _PARTITION.fullmatch(name)
    if partition:
        about_splits = any(word in _CANONICAL for word in _WORDS.findall(partition[1].lower()))
        return frozenset((name,)) if about_splits else frozenset()
    words = [word.lower() for part in _CAMEL_CASE.split(name) for word in _WORDS.findall(part)]
    if len(words) > _MAX_WORDS:
        return frozenset()
    return frozenset(
        split
        for keyword, split in _CANONICAL.items()
        if any(keyword in (w[: len(keyword)], w[-len(keyword) :]) for w in words)
    )


def _canonical(split: str) -> str:
    return _word_in(split) or split.lower()
