"""Say in words of a config what its parser found wrong."""

import re
from collections.abc import Callable

from pipeline.errors import quoted

_KINDS = {
    "<class 'int'>": "an integer",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
}


def in_words(message: str) -> str:
    """Return the parser's message, one line, in words of a config; messages of other kinds are returned unchanged."""
    for pattern, say in _PATTERNS:
        if found := pattern.fullmatch(message):
            return say(found)
    return message


def _of_another_kind(found: re.Match[str]) -> str:
    kind = found["kind"]
    kind = _KINDS.get(kind, kind).replace("typing.Literal[", "one of ").removesuffix("]")
    return f"`{found['name']}` is {kind}, not {quoted(found['value'])}"


def _missing(found: re.Match[str]) -> str:
    return f"these settings must be given: {found['names']}"


def _stray(found: re.Match[str]) -> str:
    return f"{found['texts']!r} belongs to no flag: a value comes right after its --name"


_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(
            r'Parser key "(?P<name>[^"]+)": Expected a (?P<kind><class \'\w+\'>|typing\.Literal\[.*?\])\. '
            r"Got value: (?P<value>.*)"
        ),
        _of_another_kind,
    ),
    (re.compile(r"the following arguments are required: (?P<names>.*)"), _missing),
    (re.compile(r"unrecognized arguments: (?P<texts>.*)"), _stray),
)
