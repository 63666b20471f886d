"""Checks of numbers, choices and locations in configs. Standard library only, because the engine uses it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from numbers import Real
from os import PathLike
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError

_MOST_SEED = 2**64 - 1


def check_finite(config: Any, prefix: str = "") -> None:
    """Refuse NaN and infinity in the fields of a dataclass, including those in lists and mappings.

    Nested configs have checked themselves when they were made.

    Args:
        config: a dataclass of settings.
        prefix: beginning of its settings' names in messages, such as `qat.`.

    Raises:
        ConfigError: a field is not finite; the message names it.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if not all(map(math.isfinite, _floats(value))):
            raise ConfigError(f"{prefix}{field.name} must be finite, not {value}")


def check_types(config: Any, prefix: str = "") -> None:
    """Refuse values of another type than a dataclass states, or that are not among those that it lists as `Literal`.

    The command line checks the types of all settings; this is for configs that Python code makes. A `Path`, a number of
    NumPy's or a float for an integer would fail far from here, or make another digest.

    Args:
        config: a dataclass of settings; its lists and tuples stand for each other.
        prefix: beginning of its settings' names in messages, such as `pool.`.

    Raises:
        ConfigError: a value has another type, or is not in the list; the message names its setting.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            raise ConfigError(f"{prefix}{name} must be {_kind(hint)}, not {value!r:.80}{_advice(value)}")
    for name, choices in _choices(type(config)).items():
        value = getattr(config, name)
        for each in value if isinstance(value, list | tuple) else (value,):
            if each not in choices:
                raise ConfigError(f"{prefix}{name} must be one of {list(choices)}, not {each!r:.80}")


@cache
def _hints(config_class: type) -> dict[str, Any]:
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in fields(config_class)}


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has a type, its entries included; one that cannot be told has every type."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in members)
    if origin in (list, tuple):
        wanted = _length(hint)
        right = isinstance(value, list | tuple) and wanted in (None, len(value))
        return right and all(_fits(entry, members[0]) for entry in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(key, members[0]) for key in value)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    # To Python, Any is a class.
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _length(hint: Any) -> int | None:
    """Return the number of entries that a type of lists and tuples states, whose entries are all of one type."""
    members = get_args(hint)
    return len(members) if get_origin(hint) is tuple and members[-1] is not Ellipsis else None


def _kind(hint: Any) -> str:
    """Return a type in words."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_kind(member) for member in members)
    if origin in (list, tuple):
        several = "a list" if _length(hint) is None else f"a list of {_length(hint)}"
        return several if members[0] is Any else f"{several}, each of which is {_kind(members[0])}"
    if origin is Literal:
        return f"one of {list(members)}"
    names = {str: "text", int: "an integer", float: "a number", bool: "True or False", type(None): "None"}
    return names.get(hint) or ("a dict" if origin is dict else f"a {hint.__name__}")


def _advice(value: Any) -> str:
    if isinstance(value, PathLike):
        return ": give str(...) of it"
    return ": give .tolist() of it" if hasattr(value, "tolist") else ""


def _choices(config_class: type) -> dict[str, tuple[Any, ...]]:
    """Return the accepted values of each setting that lists them, with None if the setting may be left out."""
    found = {name: _listed(hint) for name, hint in _hints(config_class).items()}
    return {name: choices for name, choices in found.items() if any(choice is not None for choice in choices)}


def _listed(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if hint is type(None):
        return (None,)
    return tuple(choice for member in get_args(hint) for choice in _listed(member))


def check_range(
    name: str,
    value: float | None,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuse a number outside its range. None, for a setting that is not set, is in every range.

    Args:
        name: name of the setting, for the message.
        value: value of the setting; None if it is not set.
        low, high: smallest and largest value that is accepted.
        open_low, open_high: whether that end itself is refused.

    Raises:
        ConfigError: the value is outside the range, or not a number.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name} must be a number, not {value!r:.80}")
    above = value > low if open_low else value >= low
    if above and (value < high if open_high else value <= high):
        return
    if high < math.inf:
        wanted = f"lie in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    elif open_low:
        wanted = "be positive" if low == 0 else f"be more than {low:g}"
    else:
        wanted = "not be negative" if low == 0 else f"be at least {low:g}"
    raise ConfigError(f"{name} must {wanted}, not {value}")


def check_ranges(config: Any, names: Iterable[str], low: float, *, open_low: bool = False, prefix: str = "") -> None:
    """Refuse settings of a dataclass below their range, see `check_range` and `check_finite`."""
    for name in names:
        check_range(prefix + name, getattr(config, name), low, open_low=open_low)


def check_seed(seed: int) -> None:
    """Refuse a `seed` that torch cannot take, which has 64 bits.

    Raises:
        ConfigError: the seed is negative, or larger than 64 bits.
    """
    check_range("seed", seed, 0)
    if seed > _MOST_SEED:
        raise ConfigError(f"seed must be at most 2^64 - 1, not {seed}")


def check_located(name: str, uris: str | Iterable[str] | None) -> None:
    """Refuse an empty location, as an unset shell variable leaves it. None, for a setting that is not set, passes.

    Args:
        name: name of the setting, for the message.
        uris: one location or several; None if the setting is not set.

    Raises:
        ConfigError: a location is empty.
    """
    if uris is not None and "" in ([uris] if isinstance(uris, str) else uris):
        raise ConfigError(f"{name} is empty: name a file or a folder, `.` for the working folder")


def check_labeled_split(labeled: str | None, split: str | None) -> None:
    """Refuse a split of labeled images where there are none: nothing would be scored.

    Raises:
        ConfigError: a split is given without labeled images.
    """
    if split is not None and labeled is None:
        raise ConfigError(
            f"labeled_split is {split!r}, and labeled is not set: name the images there, or leave labeled_split out"
        )


def describe_normalization_fault(values: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a `mean` or `std`; None if both are possible.

    Both are of pixels in [0, 1]. A model that reads [-1, 1] has 0.5 and 0.5, one that reads [0, 255] has 0 and 1/255,
    and one that reads [0, 1] has 0 and 1: no standard deviation is above 1.

    Args:
        values: `mean`, `std` or both, one number per channel.
    """
    for name, value in values.items():
        numbers = list(value) if isinstance(value, list | tuple) else []
        if not numbers or not all(is_number(number) for number in numbers):
            return f"{name} must be numbers, one per channel, not {value!r:.80}"
        low = "must be of" if name == "mean" else "must be above 0 and at most 1, as of"
        if not all(0 <= number <= 1 for number in numbers) or (name == "std" and 0 in numbers):
            hint = ": divide by 255 if it is of pixels in [0, 255]" if max(numbers) > 1 else ""
            return f"{name} {low} pixels in [0, 1], not {numbers}{hint}"
    return None


def is_number(value: Any) -> bool:
    """Return whether a value is a number and not NaN."""
    # NaN is not equal to itself, and infinity is out of every range here.
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _floats(member)
    elif isinstance(value, Mapping):
        yield from _floats(list(value.values()))
