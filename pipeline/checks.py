"""Range checks for configs. Standard library only, because the engine uses it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from pipeline.errors import ConfigError


def check_finite(config: Any) -> None:
    """Refuse NaN and infinity in the fields of a dataclass, including those in lists and mappings.

    Nested configs have checked themselves when they were made.

    Raises:
        ConfigError: a field is not finite; the message names it.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if not all(map(math.isfinite, _floats(value))):
            raise ConfigError(f"{field.name} must be finite, not {value}")


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
        name: of the setting, for the message.
        value: to check.
        low, high: ends of the range, inclusive.
        open_low, open_high: whether that end is exclusive.

    Raises:
        ConfigError: it is outside, or not a number.
    """
    if value is None:
        return
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


def check_ranges(config: Any, names: Iterable[str], low: float, *, open_low: bool = False) -> None:
    """Refuse settings of a dataclass below their range, see `check_range`."""
    for name in names:
        check_range(name, getattr(config, name), low, open_low=open_low)


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _floats(member)
    elif isinstance(value, Mapping):
        yield from _floats(list(value.values()))
