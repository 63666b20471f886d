"""Read the settings of a config as data, before the parser sees them.

Where a section belongs, the parser takes a text for the name of a Python class, and imports its module, which runs it.
So it is handed mappings alone: a section that is the path of a file is read here, and all else is refused.
"""

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from pipeline.documents import check_keys_differ, parse_yaml
from pipeline.errors import ConfigError, shown

# By this key jsonargparse finds classes.
_CLASS_PATH = "class_path"
_FLAG = re.compile(r"--[\w.+-]+")


def resolve(config: type, values: Mapping[str, Any], name: str = "", folder: str = "") -> dict[str, Any]:
    """Return settings as plain data, with the sections that are files of their own in their place.

    Args:
        config: dataclass that they are of.
        values: as YAML holds them; keys may be dotted, and end in `+` to add to a list.
        name: of the section that they are, dotted; empty for the whole.
        folder: that the paths of files are relative to; by default that of the process.

    Raises:
        ConfigError: there is a key that is no setting, or something else where a section belongs.
    """
    check_no_classes(values)
    return {key: _resolve_key(config, key, value, name, folder) for key, value in values.items()}


def resolve_flags(config: type, flags: Sequence[str]) -> list[str]:
    """Return a command line with its sections resolved, as `resolve` does.

    Raises:
        ConfigError: as there.
    """
    return [part for flag in _split(flags) for part in _resolve_flag(config, *flag)]


def read_settings(text: str, what: str) -> Any:
    """Return the plain data that a YAML text holds.

    Args:
        text: of a file, or of a flag.
        what: it is, for the message.

    Raises:
        ConfigError: it cannot be read, or has a key twice.
    """
    try:
        # The parser's own, for it reads numbers such as 1e-3 where YAML's does not.
        values = parse_yaml(text, jsonargparse.get_loader("yaml"))
        check_keys_differ(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{what} cannot be read: {' '.join(str(error).split())}") from error
    check_no_classes(values)
    return values


class _Dumper(yaml.SafeDumper):
    """Quotes all text: `1e-3` is a number for the parser, and none for YAML's own dumper."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def write_settings(values: Any) -> str:
    """Return plain data as YAML of one line, which the parser reads as it is."""
    return yaml.dump(values, Dumper=_Dumper, default_flow_style=True, width=float("inf"), sort_keys=False).strip()


def check_no_classes(value: Any) -> None:
    """Refuse `class_path` in settings that take any value: the parser would import the module that it names.

    Raises:
        ConfigError: there is one, as a key or in a text, which the parser may read as YAML.
    """
    if isinstance(value, str):
        value = _within(value)
    if isinstance(value, jsonargparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        if any(_names_class(key) for key in value):
            raise ConfigError(f"a config holds settings, and no {_CLASS_PATH} of Python code: {shown(value)}")
        value = list(value.values())
    for entry in value if isinstance(value, list | tuple) else ():
        check_no_classes(entry)


def _within(text: str) -> Any:
    """Return the data that the parser may find in a text; None if there is none."""
    if ":" not in text:
        return None
    try:
        read = parse_yaml(text, jsonargparse.get_loader("yaml"))
    except yaml.YAMLError:
        return None
    except ValueError as error:
        raise ConfigError(f"{shown(text)} cannot be read: {error}") from error
    return None if isinstance(read, str) else read


def _names_class(key: Any) -> bool:
    return isinstance(key, str) and _CLASS_PATH in key.rstrip("+").split(".")


def _resolve_key(config: type, key: Any, value: Any, name: str, folder: str) -> Any:
    first, dot, rest = key.rstrip("+").partition(".") if isinstance(key, str) else (key, "", "")
    hint = _hints(config).get(first)
    if hint is None:
        raise _unknown(config, str(first), name)
    within = f"{name}.{first}" if name else first
    if dot and (below := _section(hint)) is not None:
        return _resolve_key(below, key.partition(".")[2], value, within, folder)
    if dot:
        # Below a list there are no names; a mapping that takes any holds no sections.
        return value if _entry(hint) is None else _resolve(hint, {rest: value}, within, folder)
    return _resolve_added(hint, value, within, folder) if key.endswith("+") else _resolve(hint, value, within, folder)


def _resolve(hint: Any, value: Any, name: str, folder: str) -> Any:
    """Return the value of a setting with its sections resolved; as it is where it can have none."""
    section, entry = _section(hint), _entry(hint)
    if value is None or (section is None and entry is None) or _is_text(hint, value):
        return value
    if section is not None:
        return _resolve_section(section, value, name, folder)
    if not isinstance(value, list | tuple):
        raise ConfigError(
            f"`{name}` is a list of sections, {_example(f'{name}[]', _section(entry))}, not {shown(value)}"
        )
    return [_resolve(entry, each, f"{name}[{number}]", folder) for number, each in enumerate(value)]


def _resolve_added(hint: Any, value: Any, name: str, folder: str) -> Any:
    """Return what is added to a list, an entry or several."""
    entry = _entry(hint)
    if entry is None:
        return _resolve(hint, value, name, folder)
    return _resolve(hint if isinstance(value, list | tuple) else entry, value, f"{name}[]", folder)


def _resolve_section(section: type, value: Any, name: str, folder: str) -> Any:
    if isinstance(value, str):
        file = os.path.join(folder, os.path.expanduser(value))
        if os.path.isfile(file):
            try:
                text = Path(file).read_text(encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"`{name}` is in {value!r}, which cannot be read: {error}") from error
            folder, value = os.path.dirname(file), read_settings(text, f"`{name}` in {value!r}")
    if isinstance(value, section):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"`{name}` is a section, {_example(name, section)}, or the path of a YAML file with one, not {shown(value)}"
        )
    return resolve(section, value, name, folder)


def _split(flags: Sequence[str]) -> Iterator[tuple[list[str], str, str | None]]:
    """Yield each flag of a command line with what it is made of, its name, and its value if it has one."""
    rest = list(flags)
    while rest:
        parts = [rest.pop(0)]
        name, equals, value = parts[0].partition("=")
        if not name.startswith("--"):
            yield parts, "", parts[0]
            continue
        if not _FLAG.fullmatch(name):
            raise ConfigError(f"{shown(parts[0])} is no flag, which is as `--name value`")
        if not equals and rest and not rest[0].startswith("--"):
            parts.append(value := rest.pop(0))
        yield parts, name[2:], value if equals or len(parts) > 1 else None


def _resolve_flag(config: type, parts: list[str], name: str, text: str | None) -> list[str]:
    if _names_class(name):
        raise ConfigError(f"a config holds settings, and no {_CLASS_PATH} of Python code: --{name}")
    check_no_classes(text)
    hint = _hint(config, name)
    if hint is None or text is None or (_section(hint) is None and _entry(hint) is None):
        return parts
    value = read_settings(text, f"--{name}") if text.strip() else text
    resolve_value = _resolve_added if name.endswith("+") else _resolve
    resolved = resolve_value(hint, value, name.rstrip("+"), "")
    return [f"--{name}={write_settings(resolved)}"] if isinstance(resolved, Mapping | list) else parts


def _hint(config: type, name: str) -> Any:
    """Return the type of the setting that a flag is for; None if it is for none, or for an entry of a free mapping.

    Raises:
        ConfigError: it is below a setting, and there is none of that name.
    """
    section, within = config, ""
    first, dot, rest = name.rstrip("+").partition(".")
    while (hint := _hints(section).get(first)) is not None and dot:
        below = _section(hint) or _section(_entry(hint))
        if below is None or rest == "help":
            return None
        section, within = below, f"{within}.{first}" if within else first
        first, dot, rest = rest.partition(".")
    if hint is None and within:
        raise _unknown(section, first, within)
    return hint


def _unknown(config: type, key: str, name: str) -> ConfigError:
    known = list(_hints(config))
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
    return ConfigError(f"{shown(f'{name}.{key}' if name else key)} is no setting: {advice}")


def _example(name: str, section: Any) -> str:
    """Return how a section begins: with the first setting that it needs, or with its first."""
    fields = dataclasses.fields(section)
    needed = (field for field in fields if field.default is field.default_factory is dataclasses.MISSING)
    text, (leaf, bracket, _) = f"{{{next(needed, fields[0]).name}: ...}}", name.rpartition(".")[2].partition("[")
    return f"`{leaf}: [{text}]`" if bracket else f"`{leaf}: {text}`"


def _hints(config: type) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_text(hint: Any, value: Any) -> bool:
    return str in _members(hint) and not isinstance(value, Mapping | list | tuple)


def _section(hint: Any) -> Any:
    """Return the dataclass that a setting may be; None if it may be none."""
    return next((member for member in _members(hint) if dataclasses.is_dataclass(member)), None)


def _entry(hint: Any) -> Any:
    """Return the type of the entries of a setting that may be a list of sections; None if it may not."""
    lists = (typing.get_args(member)[0] for member in _members(hint) if typing.get_origin(member) in (list, tuple))
    return next((entry for entry in lists if _section(entry) is not None), None)
