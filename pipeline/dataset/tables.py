"""Recognize Parquet folders of other systems, such as Spark and Delta Lake."""

import re
from collections.abc import Sequence

from pipeline.errors import DatasetError

# A table format → files of its log, which alone says which Parquet files are part of the table now.
_LOGS = {
    "Delta Lake": re.compile(r"(.*/)?_delta_log/[^/]+\.json"),
    "Iceberg": re.compile(r"(.*/)?metadata/[^/]+\.metadata\.json"),
}
_LABEL = re.compile(r"(?:.*/)?(label=[^/]*)/.*")


def is_unfinished(name: str) -> bool:
    """Return whether a file is no rows to read by the rule of Hadoop, Spark and Arrow: `_temporary/...`, `_metadata`.

    Spark keeps what it is writing, or what a killed job left, under `_temporary`: the same rows again, or part of them.
    """
    return any(segment.startswith("_") and "=" not in segment for segment in name.split("/"))


def check_no_log(uri: str, names: Sequence[str]) -> None:
    """Refuse a folder whose Parquet files are not all rows of its table.

    Args:
        uri: of the folder, for messages.
        names: of all its files, under it.

    Raises:
        DatasetError: it is a table of a format with a log.
    """
    for system, log in _LOGS.items():
        if any(map(log.fullmatch, names)):
            raise DatasetError(
                f"{uri!r} is a table of {system}: its files also hold deleted rows. Export it as plain Parquet files"
            )


def check_labels_in_files(uri: str, names: Sequence[str]) -> None:
    """Refuse files without a column of labels whose folders are named by label, as Spark and Hive partition a table.

    Args:
        uri: of the folder, for messages.
        names: of the files, under it.

    Raises:
        DatasetError: they are.
    """
    match = next(filter(None, map(_LABEL.fullmatch, names)), None)
    if match is not None:
        raise DatasetError(
            f"{uri!r} is partitioned by label: the folder {match[1]!r} has its label in its name and not in its files. "
            "Write them with a column `label`"
        )
