"""Compare and order class names."""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.errors import DatasetError

_NUMBERED = re.compile(r"([^0-9]*)([0-9]+)([^0-9]*)")
# Larger numbers in names do not count classes but identify them: `n000129` is a person of VGGFace2, `n01440764` a
# synset.
_MAX_NUMBERS_PER_CLASS = 2


def as_number(name: str) -> int | None:
    """Return the number that a name is, zero-padded or not; None for any other name."""
    return int(name) if name.isascii() and name.isdigit() else None


def stated_names(names: Any) -> list[str] | None:
    """Return the names of labels 0, 1, 2, ... as metadata of Hugging Face state them; None if they state none.

    A list of nothing but nulls names no class, and neither does a mapping that leaves a label out: to close the gap
    would shift the names of the labels behind it.

    Args:
        names: a list of names, or a mapping of labels, as numbers or texts, to names.
    """
    if isinstance(names, Mapping):
        labels = {as_number(str(label)): name for label, name in names.items()}
        names = [labels[label] for label in range(len(names))] if labels.keys() == set(range(len(names))) else None
    if not isinstance(names, list) or (names and all(name is None for name in names)):
        return None
    return [str(name) for name in names]


def order_classes(names: Collection[str]) -> list[str]:
    """Sort class folders: by number where all are numbers, and as text otherwise, as torchvision does.

    Raises:
        DatasetError: two folders are the same number, such as `1` and `01`.
    """
    numbers = {name: as_number(name) for name in names}
    if None in numbers.values():
        return sorted(names)
    ordered = sorted(names, key=lambda name: (numbers[name], name))
    for name, following in pairwise(ordered):
        if numbers[name] == numbers[following]:
            raise DatasetError(f"the class folders {name!r} and {following!r} are the same number")
    return ordered


def misnumbered(names: Sequence[str]) -> str | None:
    """Return a name whose number is not its label; None if names count from 0 or 1, or hold no numbers.

    That happens where a class is absent (`0`, `1`, `3`) or names are sorted as text (`1`, `10`, `2`). Names that differ
    only in a number, such as `class_0`, count as well, unless the numbers are much larger than the number of classes:
    such numbers identify a class.

    Args:
        names: names of labels 0, 1, 2, ..., in that order.
    """
    if not differ_in_numbers(names):
        return None
    parts = [_NUMBERED.fullmatch(name) for name in names]
    numbers = [int(part[2]) for part in parts if part]
    prefixed = any(as_number(name) is None for name in names)
    if prefixed and max(numbers, default=0) > _MAX_NUMBERS_PER_CLASS * len(names):
        return None
    first = 1 if numbers[:1] == [1] else 0
    return next((name for label, name in enumerate(names) if numbers[label] != label + first), None)


def differ_in_numbers(names: Sequence[str]) -> bool:
    """Return whether names are alike but for a number, as `class_0`, `class_1` or `n01440764`, `n01443537`."""
    parts = [_NUMBERED.fullmatch(name) for name in names]
    return None not in parts and len({(part[1], part[3]) for part in parts if part}) <= 1


def doubtful_order(names: Collection[str]) -> tuple[str, str] | None:
    """Return two names that torchvision and timm put in different orders; None if they agree on all.

    torchvision sorts class folders as text. timm ignores case and sorts numbers within a name by value. Names that are
    plain numbers are never in doubt: `order_classes` sorts them by number.
    """
    if all(as_number(name) is not None for name in names):
        return None
    for text, natural in zip(sorted(names), sorted(names, key=_natural_key), strict=True):
        if text != natural:
            return text, natural
    return None


def _natural_key(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name.lower())
    # Parts at odd positions are the digits that the name was split at.
    return [(int(part), "") if position % 2 else (-1, part) for position, part in enumerate(parts)]
