"""Recognize Parquet folders of other systems, such as Spark and Delta Lake."""

import posixpath
import re
from collections.abc import Iterable, Sequence

from pipeline.errors import DatasetError

# Table format → its log. Only the log says which Parquet files belong to the table now. Hudi also marks each folder of
# a partitioned table.
_LOGS = {
    "Delta Lake": re.compile(r"(.*/)?_delta_log/.+"),
    "Hudi": re.compile(r"(.*/)?\.hoodie(_partition_metadata.*)?"),
    "Iceberg": re.compile(r"(.*/)?metadata/([^/]+\.metadata\.json|snap-[^/]+\.avro|version-hint\.text)"),
    "Paimon": re.compile(r"(.*/)?snapshot/snapshot-\d+"),
}
_LABEL = re.compile(r"(?:.*/)?(label=[^/]*)/.*")


def is_unfinished(name: str) -> bool:
    """Return whether Hadoop, Spark and Arrow would skip a file because of its name: `_temporary/...`, `_metadata`.

    Spark keeps files in progress and those of killed jobs under `_temporary`: all or part of the same rows again.
    """
    return any(segment.startswith("_") and "=" not in segment for segment in name.split("/"))


def check_no_log(uri: str, names: Iterable[str], hidden: Iterable[str]) -> None:
    """Refuse a folder whose Parquet files may hold rows that are not in its table.

    Args:
        uri: location of the folder, for messages.
        names: names of all files below it.
        hidden: names of hidden files and folders below it.

    Raises:
        DatasetError: the folder is a table of a format with a log.
    """
    there = [*names, *hidden]
    for system, log in _LOGS.items():
        if any(map(log.fullmatch, there)):
            raise DatasetError(
                f"{uri!r} is a table of {system}: its files also hold deleted rows. Export it as plain Parquet files"
            )


def check_labels_in_files(uri: str, names: Sequence[str]) -> None:
    """Refuse files whose labels are in the names of their folders, as in a table that Spark or Hive partitioned.

    Args:
        uri: location of the folder, for messages.
        names: names of the files below it.

    Raises:
        DatasetError: the folders are named by label.
    """
    match = next(filter(None, map(_LABEL.fullmatch, names)), None)
    if match is not None:
        raise DatasetError(
            f"{uri!r} is partitioned by label: the folder {match[1]!r} has the label in its name and not in its files. "
            "Write the files with a column `label`"
        )


def how_to_read(names: Iterable[str]) -> str:
    """Return what to do about a folder in which nothing is read, as the end of a sentence; empty if that is unknown."""
    suffixes = {posixpath.splitext(name.lower())[1] for name in names}
    if not suffixes.isdisjoint({".tar", ".tgz", ".gz", ".zip", ".7z", ".rar"}):
        return ": unpack the archives"
    return ": write it as Parquet, with `to_parquet` of Hugging Face datasets" if ".arrow" in suffixes else ""
