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

from pipeline.config.plain_data import check_no_classes, names_class, read_settings, refuse_class, write_settings
from pipeline.errors import ConfigError, quoted

_FLAG = re.compile(r"--[\w.+-]+")
# Names of flags that belong to the parser itself; "" stands for an argument that is no flag.
_NO_SETTINGS = ("", "config", "help", "print_config")


def resolve(config: type, values: Mapping[str, Any], name: str = "", folder: str = "") -> dict[str, Any]:
    """Return settings as plain data, with the sections that are files of their own in their place.

    Args:
        config: dataclass that the settings belong to.
        values: settings as YAML holds them, without classes. Keys may be dotted, and end in `+` to add to a list.
        name: dotted name of the section that they are; empty for the whole config.
        folder: folder that paths of files are relative to; by default the working folder of the process.

    Raises:
        ConfigError: there is a key that is no setting, or something else where a section belongs.
    """
    return {key: _resolve_key(config, key, value, name, folder) for key, value in values.items()}


def resolve_flags(config: type, flags: Sequence[str]) -> list[str]:
    """Return a command line with its sections resolved, as `resolve` does.

    Raises:
        ConfigError: as there.
    """
    return [part for flag in _split(flags) for part in _resolve_flag(config, *flag)]


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
    """Return the value of a setting with its sections resolved; a value that can have none is returned unchanged."""
    members, section, entry = _members(hint), _section(hint), _entry(hint)
    if value is None:
        return _resolve_null(hint, name)
    if str in members and not isinstance(value, Mapping | list | tuple):
        return value
    if section is not None:
        return _resolve_section(hint, value, name, folder)
    if entry is None:
        return value
    if not isinstance(value, list | tuple):
        below = _section(entry)
        kind = "a list of texts" if below is None else f"a list of sections, {_example(f'{name}[]', below)}"
        raise ConfigError(f"`{name}` is {'text or ' if str in members else ''}{kind}, not {quoted(value)}")
    return [_resolve_entry(entry, each, f"{name}[{number}]", folder) for number, each in enumerate(value)]


def _resolve_null(hint: Any, name: str) -> Any:
    """Return what null stands for: nothing, where a setting may be that, and else an empty section."""
    if {type(None), Any} & set(_members(hint)):
        return None
    if _section(hint) is None or name.endswith("]"):
        raise ConfigError(f"`{name}` is null: give a value or leave it out")
    return {}


def _resolve_entry(entry: Any, value: Any, name: str, folder: str) -> Any:
    if str in _members(entry) and not isinstance(value, str if _section(entry) is None else str | Mapping):
        advice = ": put it in quotes" if isinstance(value, int | float) else ""
        raise ConfigError(f"`{name}` is text, not {quoted(value)}{advice}")
    return _resolve(entry, value, name, folder)


def _resolve_added(hint: Any, value: Any, name: str, folder: str) -> Any:
    """Return the entries, one or several, that are added to a list."""
    entry = _entry(hint)
    if entry is None or isinstance(value, list | tuple):
        return _resolve(hint, value, name, folder)
    return _resolve_entry(entry, value, f"{name}[]", folder)


def _resolve_section(hint: Any, value: Any, name: str, folder: str) -> Any:
    section = _section(hint)
    if isinstance(value, str):
        file = os.path.join(folder, os.path.expanduser(value))
        if os.path.isfile(file):
            folder, value = os.path.dirname(file), _read(file, f"`{name}` in {value!r}")
    if isinstance(value, section):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"`{name}` is a section, {_example(name, section)}, or the path of a YAML file with one, not "
            f"{quoted(value)}"
        )
    # The parser takes an empty mapping for nothing where there may be none.
    if not value and (name.endswith("]") or hint is not section):
        return _defaults(section, name)
    return resolve(section, value, name, folder)


def _read(file: str, what: str) -> Any:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error}") from error
    return read_settings(text, what)


def _defaults(section: Any, name: str) -> dict[str, Any]:
    if needed := [field.name for field in dataclasses.fields(section) if _is_needed(field)]:
        raise ConfigError(f"`{name}` is empty: give its {' and '.join(needed)}")
    return dataclasses.asdict(section())


def _split(flags: Sequence[str]) -> Iterator[tuple[list[str], str, str | None]]:
    """Yield each flag of a command line as its arguments, its name, and its value if it has one."""
    rest = list(flags)
    while rest:
        parts = [rest.pop(0)]
        name, equals, value = parts[0].partition("=")
        if not name.startswith("--"):
            yield parts, "", parts[0]
            continue
        if not _FLAG.fullmatch(name):
            raise ConfigError(f"{quoted(parts[0])} is no flag, which is as `--name value`")
        if not equals and rest and not rest[0].startswith("--"):
            parts.append(value := rest.pop(0))
        yield parts, name[2:], value if equals or len(parts) > 1 else None


def _resolve_flag(config: type, parts: list[str], name: str, text: str | None) -> list[str]:
    if names_class(name):
        refuse_class(f"--{name}")
    check_no_classes(text)
    hint = _hint(config, name)
    if hint is None or text is None or set(_members(hint)) <= {str, type(None)}:
        return parts
    takes_text = str in _members(hint) or (_section(hint) is None and _section(_entry(hint)) is None)
    if takes_text and not text.lstrip().startswith(("[", "{")):
        return parts
    value = _read_flag(text, f"--{name}", takes_text=takes_text) if text.strip() else text
    resolve_value = _resolve_added if name.endswith("+") else _resolve
    resolved = resolve_value(hint, value, name.rstrip("+"), "")
    if not isinstance(resolved, Mapping | list):
        return parts
    if str in _members(hint):
        # Given as a flag, a list that does not fit is text for the parser.
        return [f"--config={write_settings(_nested(name, resolved))}"]
    return [f"--{name}={write_settings(resolved)}"]


def _read_flag(text: str, flag: str, *, takes_text: bool) -> Any:
    try:
        return read_settings(text, flag)
    except ConfigError as error:
        if not takes_text:
            raise
        raise ConfigError(f"{error}; for a path that begins so, give ./{text.lstrip()}") from error


def _nested(name: str, value: Any) -> dict[str, Any]:
    first, dot, rest = name.partition(".")
    return {first: _nested(rest, value) if dot else value}


def _hint(config: type, name: str) -> Any:
    """Return the type of the setting that a flag is for, any for an entry of a mapping; None if it is for none.

    Raises:
        ConfigError: there is no setting of that name.
    """
    section, within = config, ""
    first, dot, rest = name.rstrip("+").partition(".")
    while (hint := _hints(section).get(first)) is not None and dot:
        below = _section(hint) or _section(_entry(hint))
        if below is None:
            return Any
        if rest == "help":
            return None
        section, within = below, f"{within}.{first}" if within else first
        first, dot, rest = rest.partition(".")
    if hint is None and (within or first not in _NO_SETTINGS):
        raise _unknown(section, first, within)
    return hint


def _unknown(config: type, key: str, name: str) -> ConfigError:
    known = list(_hints(config))
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
    return ConfigError(f"{quoted(f'{name}.{key}' if name else key)} is no setting: {advice}")


def _example(name: str, section: Any) -> str:
    """Return how a section begins: with the first setting that it needs, or with its first."""
    fields = dataclasses.fields(section)
    text = f"{{{next(filter(_is_needed, fields), fields[0]).name}: ...}}"
    leaf, bracket, _ = name.rpartition(".")[2].partition("[")
    return f"`{leaf}: [{text}]`" if bracket else f"`{leaf}: {text}`"


def _hints(config: type) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _section(hint: Any) -> Any:
    """Return the dataclass that a setting may be; None if it may be none."""
    return next((member for member in _members(hint) if dataclasses.is_dataclass(member)), None)


def _entry(hint: Any) -> Any:
    """Return the type of the entries of a list that needs a look: of sections, or of texts where it may be text itself.

    None for any other setting.
    """
    members = _members(hint)
    entries = [typing.get_args(member)[0] for member in members if typing.get_origin(member) in (list, tuple)]
    return next(
        (each for each in entries if _section(each) is not None or {str} <= {*members} & {*_members(each)}), None
    )
