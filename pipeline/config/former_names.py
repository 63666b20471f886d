"""Accept settings under the names that they had in earlier versions, and say what they are called now."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import ConfigError
from pipeline.log import logger

# British spelling gave way to American. For the configs of all jobs that score on labeled images.
LABELED = {"labelled": "labeled", "labelled_split": "labeled_split"}


class FormerNames:
    """Renames a config's former settings to today's names, and remembers which of them the user still uses.

    Whatever is read of one command line goes through one of these, so that `warn` prints one line.

    Args:
        config_class: a dataclass of settings. Its class variable `FORMER_NAMES`, if it has one, maps former dotted
            names to those of today.
    """

    def __init__(self, config_class: type) -> None:
        self._names: Mapping[str, str] = getattr(config_class, "FORMER_NAMES", {})
        self._met: dict[str, str] = {}

    def rename_flags(self, flags: Sequence[str]) -> list[str]:
        """Return a command line with today's names, each flag in its place: of two values the later one holds.

        Raises:
            ConfigError: a setting is given under both names.
        """
        given = {flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")}
        for former, name in self._names.items():
            if former in given:
                self._meet(former, name, both=not given.isdisjoint(_with_sections(name)))
        return [self._rename_flag(flag) for flag in flags]

    def _rename_flag(self, flag: str) -> str:
        former, equals, value = flag[2:].partition("=")
        return f"--{self._names[former]}{equals}{value}" if flag.startswith("--") and former in self._names else flag

    def rename_keys(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return nested plain data with today's names.

        Raises:
            ConfigError: a setting is given under both names.
        """
        given = [former for former in self._names if _has(values, former)]
        if not given:
            return values
        renamed = copy.deepcopy(dict(values))
        for former in given:
            name = self._names[former]
            self._meet(former, name, both=_blocks(values, name))
            _put(renamed, name, _take(renamed, former))
        return renamed

    def warn(self) -> None:
        """Warn of the former names that were met, in one line."""
        if self._met:
            logger.warning(", ".join(f"{former} is now {name}" for former, name in self._met.items()))

    def _meet(self, former: str, name: str, *, both: bool) -> None:
        if both:
            raise ConfigError(f"{former} is now {name}: give it once, not under both names")
        self._met[former] = name


def _with_sections(name: str) -> set[str]:
    """Return a dotted name with the names of the sections that it lies in."""
    parts = name.split(".")
    return {".".join(parts[: length + 1]) for length in range(len(parts))}


def _has(values: Any, name: str) -> bool:
    first, _, rest = name.partition(".")
    if not isinstance(values, Mapping) or first not in values:
        return False
    return not rest or _has(values[first], rest)


def _blocks(values: Mapping[str, Any], name: str) -> bool:
    """Return whether a setting cannot be moved to `name`: it is given already, or one of its sections is no mapping."""
    if name in values:
        return True
    first, _, rest = name.partition(".")
    section = values.get(first, {})
    return bool(rest) and (not isinstance(section, Mapping) or _blocks(section, rest))


def _take(values: dict[str, Any], name: str) -> Any:
    *sections, last = name.split(".")
    for section in sections:
        values = values[section]
    return values.pop(last)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value
