"""Compare and order class names."""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

from pipeline.errors import DatasetError

_NUMBERED = re.compile(r"([^0-9]*)([0-9]+)([^0-9]*)")
# Beyond that, numbers in names count nothing: `n000129` is a person of VGGFace2, `n01440764` a synset.
_MAX_NUMBERS_PER_CLASS = 2


def as_number(name: str) -> int | None:
    """Return the number that a name is, zero-padded or not; None for any other name."""
    return int(name) if name.isascii() and name.isdigit() else None


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
    """Return a name with another number than its place has; None where names count from 0 or 1, or hold no numbers.

    A class may be absent (`0`, `1`, `3`), or the order be that of text (`1`, `10`, `2`). Names that are all alike but
    for a number, as `class_0`, count as well, unless the numbers are far beyond how many there are: those identify.

    Args:
        names: of labels 0, 1, 2, ...
    """
    parts = [_NUMBERED.fullmatch(name) for name in names]
    if None in parts or len({(part[1], part[3]) for part in parts if part}) > 1:
        return None
    numbers = [int(part[2]) for part in parts if part]
    prefixed = any(as_number(name) is None for name in names)
    if prefixed and max(numbers, default=0) > _MAX_NUMBERS_PER_CLASS * len(names):
        return None
    first = 1 if numbers[:1] == [1] else 0
    return next((name for place, name in enumerate(names) if numbers[place] != place + first), None)


def doubtful_order(names: Collection[str]) -> tuple[str, str] | None:
    """Return two names that torchvision and timm put in different orders; None where they agree on all.

    torchvision sorts class folders as text. timm ignores case, and numbers within a name count by value. Names that
    are numbers are beyond doubt here: they go by number.
    """
    if all(as_number(name) is not None for name in names):
        return None
    for text, natural in zip(sorted(names), sorted(names, key=_natural_key), strict=True):
        if text != natural:
            return text, natural
    return None


def _natural_key(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name.lower())
    # Every second part is what was split at: digits.
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]
