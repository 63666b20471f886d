"""Read and write the settings of a config as plain data, in which the parser finds no Python classes."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jsonargparse
import yaml

from pipeline.documents import check_keys_differ, check_numbers, parse_yaml
from pipeline.errors import ConfigError, quoted

# By this key jsonargparse finds classes, and imports their modules. Since 4.53 it can refuse that itself, with
# `set_parsing_settings(import_path_denylist=["*"])`. It was tried in place of the checks below. All tests of
# `tests/config` pass with it, but only with `pipeline` allowed again, because it also looks up optional sections by the
# import paths of their dataclasses. A config could then import any module of this project. And the setting is of the
# process, not of a parser: a program that uses this project as a library could not name classes in its own configs.
_CLASS_PATH = "class_path"
# Longest line of YAML, in characters: the value of a flag must not be broken.
_WIDTH = 2**31 - 1


def read_settings(text: str, what: str) -> Any:
    """Return the plain data that a YAML text holds.

    Args:
        text: content of a file, or value of a flag.
        what: what the text is, for the message.

    Raises:
        ConfigError: it cannot be read, has a key twice, or a number that YAML reads as octal.
    """
    try:
        # The parser's own loader, because it reads numbers such as 1e-3, and YAML's does not.
        values = parse_yaml(text, jsonargparse.get_loader("yaml"))
        check_keys_differ(text)
        check_numbers(text)
    except (yaml.YAMLError, ValueError) as error:
        # The file is named; YAML's parser knows it as a text alone.
        reason = " ".join(str(error).split()).replace('in "<unicode string>", line', "in line")
        raise ConfigError(f"{what} cannot be read: {reason}") from error
    check_no_classes(values)
    return values


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes all text: `1e-3` is a number for the parser, and none for YAML's own dumper."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def write_settings(values: Any) -> str:
    """Return plain data as YAML of one line, which the parser reads as it is."""
    return yaml.dump(values, Dumper=_Dumper, default_flow_style=True, width=_WIDTH, sort_keys=False).strip()


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
        if any(names_class(key) for key in value):
            refuse_class(value)
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
        raise ConfigError(f"{quoted(text)} cannot be read: {error}") from error
    return None if isinstance(read, str) else read


def names_class(key: Any) -> bool:
    """Return whether a key, which may be dotted, is one by which the parser finds classes."""
    return isinstance(key, str) and _CLASS_PATH in key.rstrip("+").split(".")


def refuse_class(found: Any) -> NoReturn:
    """Raise the error that says that there are no classes in a config."""
    raise ConfigError(f"a config holds settings, and no {_CLASS_PATH} of Python code: {quoted(found)}")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON data: tuples as lists, nested configs as mappings."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of plain data; the order of keys does not matter."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
