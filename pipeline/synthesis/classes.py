"""Parse the setting `classes`: labels and ranges, such as `0-9,20`, or a file of them."""

import re
from collections.abc import Iterable
from typing import Any, TypeGuard

from pipeline import storage
from pipeline.documents import parse_json
from pipeline.errors import ConfigError, DatasetError

# Entries are `int | str`. They are checked below, because jsonargparse would repeat all of a long list in its error.
Classes = tuple[Any, ...] | str

_RANGE = re.compile(r"([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?")
# A text of only these characters is a list; any other is the URI of a file.
_LIST = re.compile(r"[0-9\s,.+-]*")


def read_classes(classes: Iterable[Any] | str) -> list[range]:
    """Return the ranges of labels that a setting names, in its order.

    Args:
        classes: labels and ranges (`0-9`, both ends included), as a sequence or separated by commas; or the URI of a
            file of them: a JSON list, or text separated by commas or line ends, with comments after `#`.

    Raises:
        ConfigError: the list is empty, an entry is no label or range, a range runs backward, or a label comes twice.
    """
    if names_file(classes):
        return _ranges(_read_entries(classes), f"classes file {classes!r}")
    entries = classes.split(",") if isinstance(classes, str) else classes
    return _ranges(entries, "classes")


def names_file(classes: Iterable[Any] | str | None) -> TypeGuard[str]:
    """Return whether a setting is the URI of a file, and not the labels themselves."""
    return isinstance(classes, str) and _LIST.fullmatch(classes) is None


def _read_entries(uri: str) -> list[Any]:
    try:
        text = storage.decode_text(storage.read_bytes(uri))
        if text.lstrip().startswith("["):
            return parse_json(text)
    except (DatasetError, ValueError) as error:
        raise ConfigError(
            f"classes {uri!r} is neither labels and ranges such as 0-9,20 nor a file of them: {error}"
        ) from error
    entries = [entry for line in text.splitlines() for entry in line.partition("#")[0].split(",")]
    return [entry for entry in entries if entry.strip()]


def _ranges(entries: Iterable[Any], name: str) -> list[range]:
    ranges = [_range_of(entry, name) for entry in entries]
    if not ranges:
        raise ConfigError(f"{name} is an empty list: leave it out for all classes")
    end = 0
    for labels in sorted(ranges, key=lambda labels: labels.start):
        if labels.start < end:
            raise ConfigError(f"{name} holds {labels.start} more than once")
        end = labels.stop
    return ranges


def _range_of(entry: Any, name: str) -> range:
    if isinstance(entry, bool) or not isinstance(entry, int | str):
        raise ConfigError(f"{name} holds {entry!r}, which is neither a label nor a range such as 0-9")
    if isinstance(entry, int):
        if entry < 0:
            raise ConfigError(f"{name} holds {entry}: labels start at 0")
        return range(entry, entry + 1)
    match = _RANGE.fullmatch(entry.strip())
    if match is None:
        found = entry.strip()[:60]
        raise ConfigError(f"{name} holds {found!r}, which is neither a label from 0 nor a range such as 0-9")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ConfigError(f"{name} holds the range {entry.strip()!r}, which runs backward: write {last}-{first}")
    return range(first, last + 1)


def list_classes(classes: Iterable[Any] | str | None, num_classes: int) -> list[int]:
    """Return the labels that a setting names, in its order.

    Args:
        classes: the setting, as `read_classes` takes it; None stands for all classes.
        num_classes: number of the teacher's classes.

    Raises:
        ConfigError: as `read_classes`, or the teacher does not have one of the labels.
    """
    if classes is None:
        return list(range(num_classes))
    ranges = read_classes(classes)
    beyond = [max(labels.start, num_classes) for labels in ranges if labels.stop > num_classes]
    if beyond:
        raise ConfigError(f"classes holds {beyond[0]}, the teacher has {num_classes} classes, from 0")
    return [label for labels in ranges for label in labels]
