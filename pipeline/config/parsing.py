"""Parse configs from YAML and flags into frozen dataclasses."""

import dataclasses
import inspect
import itertools
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jsonargparse

from pipeline.config.former_names import FormerNames
from pipeline.config.parser_messages import in_words
from pipeline.config.plain_data import check_no_classes, read_settings, write_settings
from pipeline.config.sections import resolve, resolve_flags
from pipeline.credentials import without_credentials
from pipeline.errors import ConfigError, quoted

C = TypeVar("C")

_LONGEST_MESSAGE = 2000
_EPILOG = "Every job also takes --quiet (-q), to print only warnings and errors, and --verbose (-v), to add tracebacks."


def parse_config(
    config_class: type[C], argv: Sequence[str] | None = None, *, prog: str | None = None, examples: Sequence[str] = ()
) -> C:
    """Read a config from `--config FILE.yaml` and `--section.key value` flags.

    Flags win over files, wherever they stand; of two files or two flags, the later one wins.

    `--help` and `--print_config` print and exit with 0, as on any command line. Settings may have their former names,
    see `FormerNames`, of which one line warns.

    Args:
        config_class: dataclass to parse the settings to.
        argv: flags; by default those of the process.
        prog: the command, as `--help` shows it.
        examples: command lines that `--help` ends with.

    Raises:
        ConfigError: an unknown key, an ill-typed value, a missing file, or values that do not go together.
    """
    parser = make_parser(config_class, prog=prog, examples=examples)
    try:
        flags = _files_first(parser.former_names.rename_flags(sys.argv[1:] if argv is None else argv))
        return _build(parser, lambda: parser.parse_args(resolve_flags(config_class, flags)), config_class)
    finally:
        parser.former_names.warn()


def _files_first(arguments: Sequence[str]) -> list[str]:
    """Put `--config FILE` before all else: the parser lets whatever comes later win."""
    files, others = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            files += [argument, *itertools.islice(rest, 1)]
        else:
            (files if argument.startswith("--config=") else others).append(argument)
    return files + others


class Parser(jsonargparse.ArgumentParser):
    """A parser whose config files hold data alone, and may hold settings under their former names.

    Attributes:
        config_class: dataclass of the settings; `object` until it is set.
        former_names: former names of its settings; empty until they are set.
    """

    config_class: type = object
    former_names = FormerNames(object)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> jsonargparse.Namespace:
        # Files and text after `--config` are read through this method too. The folder is that of the file.
        path = kwargs.get("path")
        values = self._resolved(content, f"the config file {path!r}" if path else "the text of --config")
        return super().parse_string(write_settings(values), *args, **kwargs)

    def _resolved(self, content: str, what: str) -> dict[str, Any]:
        values = read_settings(content, what)
        if not isinstance(values, Mapping):
            held = "is empty" if values is None else f"holds {quoted(values)}"
            raise ConfigError(f"{what} {held}: write settings into it, as `name: value`")
        # A file may name another one, which is read through this method as well.
        other = {"config": values["config"]} if "config" in values else {}
        renamed = self.former_names.rename_keys({key: values[key] for key in values if key not in other})
        try:
            return other | resolve(self.config_class, renamed)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from error


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Break paragraphs at the width of the terminal, but leave lines that begin with spaces, which are to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = inspect.cleandoc(text).split("\n\n")
        return "\n\n".join(
            each if each.startswith(" ") else textwrap.fill(" ".join(each.split()), width) for each in paragraphs
        )


def make_parser(config_class: type, *, prog: str | None = None, examples: Sequence[str] = ()) -> Parser:
    """Build the command line of a config: `--config FILE.yaml`, and a flag for each of its settings.

    Args:
        config_class: dataclass to parse the settings to.
        prog: the command, as `--help` shows it.
        examples: command lines that `--help` ends with, to be copied.
    """
    shown = "\n".join(f"  {line}" for line in examples)
    parser = Parser(
        prog=prog,
        description=_summary(config_class),
        epilog=f"{_EPILOG}\n\nExamples:\n\n{shown}" if examples else _EPILOG,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.config_class, parser.former_names = config_class, FormerNames(config_class)
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    parser.add_class_arguments(config_class, fail_untyped=True)
    return parser


def _summary(config_class: type) -> str:
    """Return a docstring without its sections: each flag of `--help` says what its argument is."""
    return inspect.cleandoc(config_class.__doc__ or "").partition("\n\nArgs:")[0].partition("\n\nAttributes:")[0]


def from_dict(config_class: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from plain data, as `to_dict` gives it or as YAML holds it, former names of settings included.

    Raises:
        ConfigError: as `parse_config`.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(config_class, fail_untyped=True)
    former_names = FormerNames(config_class)
    check_no_classes(values)
    renamed = former_names.rename_keys(values)
    former_names.warn()
    return _build(parser, lambda: parser.parse_object(resolve(config_class, renamed)), config_class)


def _build(parser: jsonargparse.ArgumentParser, parse: Any, config_class: type[C]) -> C:
    try:
        parsed = parse()
        check_no_classes(parsed)
        # Older versions have it under the old name alone, of which newer ones warn.
        instantiate: Any = getattr(parser, "instantiate", None) or parser.instantiate_classes
        namespace = instantiate(parsed)
        return config_class(**{f.name: namespace[f.name] for f in dataclasses.fields(config_class)})  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise ConfigError(f"a config file is not text in UTF-8, save it as such: {error}") from error
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_one_line(str(error))) from error


def _one_line(message: str) -> str:
    line = in_words(" ".join(line.strip() for line in message.splitlines() if line.strip()))
    line = without_credentials(line)
    # The parser repeats values that may have thousands of entries.
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 100]} ... {line[-100:]}"
