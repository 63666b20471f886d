"""Say in words of a config what its parser found wrong."""

import re
from collections.abc import Callable

from pipeline.errors import quoted

_KINDS = {
    "<class 'int'>": "an integer",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'list'>": "a list like [a, b]",
    "<class 'tuple'>": "a list like [a, b]",
    "<class 'dict'>": "a mapping like {a: b}",
    "<class 'NoneType'>": "null",
}
# Types that a setting may have, separated by commas; each may hold others in brackets.
_ONE_KIND = re.compile(r"(?:[^,\[]|\[(?:[^\[\]]|\[[^\]]*\])*\])+")


def in_words(message: str, within: str = "") -> str:
    """Return the parser's message, one line, in words of a config; messages of other kinds are returned unchanged.

    Args:
        message: message of the parser.
        within: dotted name of the section that the message is about; empty for the whole config.
    """
    for pattern, say in _PATTERNS:
        if found := pattern.fullmatch(message):
            return say(found, within)
    return message


def _dotted(within: str, name: str) -> str:
    return f"{within}.{name}" if within and name else within or name


def _kind(text: str) -> str:
    """Return a type, as the parser writes it, in words."""
    text = text.strip()
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {choices[1]}"
    if text.startswith(("list[", "tuple[")):
        return _KINDS["<class 'list'>"]
    return _KINDS.get(text, "a section" if text.startswith("<class 'pipeline.") else text)


def _of_another_kind(found: re.Match[str], within: str) -> str:
    return f"`{_dotted(within, found['name'])}` is {_kind(found['kind'])}, not {quoted(found['value'])}"


def _of_no_kind(found: re.Match[str], within: str) -> str:
    """Say it of a setting of several types: what one of them found wrong with the value, or which there are."""
    name = _dotted(within, found["name"] or "")
    of_kinds = ("Expected ", "Does not validate ")
    reasons = [each for each in found["errors"].split(" - ") if not each.startswith(of_kinds)]
    if reasons:
        return in_words(re.sub(r"^Problem with given class_path '[^']*': ", "", " - ".join(reasons)), name)
    kinds = " or ".join(map(_kind, _ONE_KIND.findall(found["kinds"])))
    return f"`{name}` is {kinds}, not {quoted(found['value'])}"


def _of_another_length(found: re.Match[str], within: str) -> str:
    return f"`{_dotted(within, found['name'])}` is a list of {found['count']}, not {found['value']}"


def _missing(found: re.Match[str], within: str) -> str:
    return f"these settings must be given: {', '.join(_dotted(within, name) for name in found['names'].split(', '))}"


def _stray(found: re.Match[str], _: str) -> str:
    return f"{found['texts']!r} belongs to no flag: a value comes right after its --name"


def _without_value(found: re.Match[str], _: str) -> str:
    return f"{found['flag']} has no value: give one after it, such as true"


_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], str], str]], ...] = (
    (
        re.compile(
            r'Parser key "(?P<name>[^"]+)": Expected a (?P<kind><class \'\w+\'>|typing\.Literal\[.*?\])\. '
            r"Got value: (?P<value>.*)"
        ),
        _of_another_kind,
    ),
    (
        re.compile(
            r'(?:Parser key "(?P<name>[^"]+)": )?Does not validate against any of the Union subtypes '
            r"Subtypes: \[(?P<kinds>.*?)\] Errors: - (?P<errors>.*?) Given value type: .*? Given value: (?P<value>.*)"
        ),
        _of_no_kind,
    ),
    (
        re.compile(
            r'Parser key "(?P<name>[^"]+)": Expected a tuple with (?P<count>\d+) elements\. Got value: (?P<value>.*)'
        ),
        _of_another_length,
    ),
    (re.compile(r"the following arguments are required: (?P<names>.*)"), _missing),
    (re.compile(r"unrecognized arguments: (?P<texts>.*)"), _stray),
    (re.compile(r"argument (?P<flag>--\S+): expected one argument"), _without_value),
)
