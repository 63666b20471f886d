"""What every config checks of its numbers; the standard library alone, so that the engine can use it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from pipeline.errors import ConfigError


def check_finite(config: Any) -> None:
    """Refuse NaN and infinity in the fields of a dataclass, within lists and mappings too.

    Configs within it have checked themselves when they were made.

    Raises:
        ConfigError: with the name of the field.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if not all(map(math.isfinite, _floats(value))):
            raise ConfigError(f"{field.name} must be finite, not {value}")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _floats(member)
    elif isinstance(value, Mapping):
        yield from _floats(list(value.values()))
