"""Checks of numbers, choices and locations in configs. Standard library only, because the engine uses it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

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


def check_choices(config: Any, prefix: str = "") -> None:
    """Refuse values that are not among those that a dataclass lists as `Literal`, also within lists and unions.

    The command line checks the types of all settings; this is for configs that Python code makes.

    Args:
        config: a dataclass of settings.
        prefix: beginning of its settings' names in messages, such as `pool.`.

    Raises:
        ConfigError: a value is not in the list; the message names its setting and the list.
    """
    for name, choices in _choices(type(config)).items():
        value = getattr(config, name)
        for each in value if isinstance(value, list | tuple) else (value,):
            if each not in choices:
                raise ConfigError(f"{prefix}{name} must be one of {list(choices)}, not {each!r:.80}")


@cache
def _choices(config_class: type) -> dict[str, tuple[Any, ...]]:
    """Return the accepted values of each setting that lists them, with None if the setting may be left out."""
    hints = get_type_hints(config_class)
    found = {field.name: _listed(hints[field.name]) for field in fields(config_class)}
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
