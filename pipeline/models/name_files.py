"""Read class names from JSON or text files."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.documents import parse_json
from pipeline.errors import ConfigError, DatasetError
from pipeline.storage import decode_text, read_bytes

_HINT = 'give a JSON list of names, a JSON object such as {"0": "cat"} or {"cat": 0}, or one name per line'
# Keys of the names in a JSON object that holds more, and what their values map; each value may be a list as well.
_NUMBER_TO_NAME = ("id2label", "idx_to_class")
_NAME_TO_NUMBER = ("label2id", "class_to_idx")
_KEYS = (*_NUMBER_TO_NAME, "label_names", *_NAME_TO_NUMBER)
# Suffixes of other text files, whose lines would be taken for names.
_OTHER_KINDS = {
    **dict.fromkeys((".yaml", ".yml"), "YAML"),
    **dict.fromkeys((".csv", ".tsv"), "a table"),
    **dict.fromkeys((".toml", ".ini", ".cfg", ".xml", ".html", ".htm", ".md", ".py", ".jsonl"), "no list of names"),
    **dict.fromkeys((".pbtxt", ".parquet", ".pkl", ".npy", ".pth", ".mat"), "no list of names"),
}
# Longest line, in characters. The time to match a line grows with the square of its length.
_LONGEST_LINE = 1000
_NUMBER_FIRST = re.compile(r"\s*\d+\s*[,;|:\t=]\s*\S")
_NUMBER_LAST = re.compile(r".*\S\s*[,;|:\t=]\s*\d+\s*$")
_NUMBER_SPACE_FIRST = re.compile(r"\s*(\d+)\s+(\S.*)")
_NUMBER_SPACE_LAST = re.compile(r"\s*(.*\S)\s+(\d+)\s*$")
_SYNSET = re.compile(r"n\d{8}")
_SYNSET_FIRST = re.compile(r"n\d{8}[\s,;:|]+\S")


def read_class_names(uri: str) -> list[str]:
    """Return the names in a file, in the order of their numbers.

    Raises:
        ConfigError: the file cannot be read, or does not give one name for each number from 0 on.
    """
    try:
        content = read_bytes(uri)
    except DatasetError as error:
        raise ConfigError(f"class_names: {error}") from error
    try:
        return parse_class_names(
            decode_text(content), suffix=re.sub(r"^.*(\.\w+)$", r"\1", uri.rpartition("/")[2]).lower()
        )
    except ValueError as error:
        raise ConfigError(f"class_names: {uri!r} {error}; {_HINT}") from error


def parse_class_names(text: str, *, suffix: str = "") -> list[str]:
    """Return the names that a text holds, in the order of their numbers.

    Args:
        text: JSON, or one name per line.
        suffix: suffix of the file's name, such as `.txt`. Suffixes of other kinds of files are refused.

    Raises:
        ValueError: the text is neither, or ambiguous; the message is the predicate of a sentence.
    """
    if suffix in _OTHER_KINDS:
        raise ValueError(f"is {_OTHER_KINDS[suffix]}, by its name")
    if not text.strip():
        raise ValueError("is empty")
    if suffix == ".json" or text.lstrip()[0] in "{[":
        return names_of(_parse_json(text))
    return _names_of_lines(text)


def names_of(value: Any) -> list[str]:
    """Return the names in a list, a mapping of numbers to names or of names to numbers, or a model's `config.json`.

    Raises:
        ValueError: the value is none of them, or its numbers are not 0, 1, 2, ...; the message is the predicate of a
            sentence.
    """
    if isinstance(value, list | tuple):
        return _checked([_with_synset(name) for name in value])
    if not isinstance(value, Mapping):
        raise ValueError(f"is {value!r:.60}, neither a list nor an object of names")
    found = {key: value[key] for key in _KEYS if value.get(key)}
    if not found and isinstance(value.get("pretrained_cfg"), Mapping):
        # The layout of timm before 1.0.
        found = {key: value["pretrained_cfg"][key] for key in _KEYS if value["pretrained_cfg"].get(key)}
    if not found:
        return _names_of_mapping(value)
    read = names_by_key(found)
    return agreed_names(read) or next(iter(read.values()))


def names_by_key(entries: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names that each entry gives, such as `id2label`, whose key says what it maps.

    Where names repeat, a mapping of names to numbers holds each of them once, and is left out beside one of numbers to
    names.

    Raises:
        ValueError: as `names_of`.
    """
    read = {key: _names_under(key, entries[key]) for key in entries if key not in _NAME_TO_NUMBER}
    others = [entries[key] for key in _NAME_TO_NUMBER if key in entries]
    lossy = [other for other in others if any(_is_lossy_inverse(other, names) for names in read.values())]
    inverse = {key: entries[key] for key in _NAME_TO_NUMBER if key in entries and entries[key] not in lossy}
    return read | {key: _names_under(key, value) for key, value in inverse.items()}


def _names_under(key: str, value: Any) -> list[str]:
    """Return the names in a value whose key may say what it maps; numbers may be written as text there."""
    if isinstance(value, Mapping) and value:
        if key in _NUMBER_TO_NAME and _are_numbers(value) and all(isinstance(name, str) for name in value.values()):
            return _in_order([int(number) for number in value], list(value.values()))
        if key in _NAME_TO_NUMBER and _are_numbers(value.values()):
            return _in_order([int(number) for number in value.values()], list(value))
    return names_of(value)


def _is_lossy_inverse(value: Any, names: list[str]) -> bool:
    """Return whether a mapping of names to numbers was made from names that repeat, and so lost some numbers."""
    if not isinstance(value, Mapping) or value.keys() != set(names) or len(value) == len(names):
        return False
    numbered = {str(number): name for number, name in enumerate(names)}
    return all(numbered.get(str(number)) == name for name, number in value.items())


def agreed_names(read: Mapping[str, list[str]]) -> list[str] | None:
    """Return the names that several entries agree on; None if there are only names that a library filled in.

    Args:
        read: key of an entry, such as `id2label` → the names that it gives.

    Raises:
        ValueError: two entries differ; the message is the predicate of a sentence.
    """
    given = {key: names for key, names in read.items() if not _filled_in(names)}
    first = next(iter(given), "")
    differing = [key for key, names in given.items() if names != given[first]]
    if differing:
        raise ValueError(f"has other names in {differing[0]} than in {first}")
    return given[first] if given else None


def names_in_config(config: Mapping[str, Any]) -> list[str] | None:
    """Return the names that a model's `config.json` states; None if it states none.

    Raises:
        ValueError: as `names_of`.
    """
    nested = config.get("pretrained_cfg")
    stating = (config, nested) if isinstance(nested, Mapping) else (config,)
    if not any(entries.get(key) for entries in stating for key in _KEYS):
        return None
    names = names_of(config)
    return None if _filled_in(names) else names


def _filled_in(names: list[str]) -> bool:
    """Return whether names are those that transformers or Ultralytics writes by default."""
    return any(names == [f"{word}{number}" for number in range(len(names))] for word in ("LABEL_", "class"))


def _with_synset(name: Any) -> Any:
    """Return a pair of synset and name, as Keras' `imagenet_class_index.json` has it, as one text; all else as it is.

    Two classes of that file are called "crane"; with their synsets, classes match those of other sets of ImageNet.
    """
    is_pair = isinstance(name, list | tuple) and len(name) == 2 and all(isinstance(part, str) for part in name)
    return f"{name[1]} ({name[0]})" if is_pair and _SYNSET.fullmatch(name[0]) and name[1].strip() else name


def _names_of_mapping(value: Mapping[Any, Any]) -> list[str]:
    if not value:
        raise ValueError("is an empty object")
    value = {key: _with_synset(name) for key, name in value.items()}
    keys_count = _are_numbers(value)
    if all(_is_number(label) for label in value.values()):
        return _in_order(list(value.values()), list(value.keys()))
    if keys_count and all(isinstance(name, str) for name in value.values()):
        if all(name.isdecimal() for name in value.values()) and any(str(k) != v for k, v in value.items()):
            raise ValueError('maps numbers to numbers, both as text: which are the names? Write numbers as {"name": 0}')
        return _in_order([int(key) for key in value], list(value.values()))
    key, label = next(iter(value.items()))
    message = f"maps {key!r:.40} to {label!r:.40}, neither a number to a name nor a name to a number"
    raise ValueError(f"{message}, and has none of {', '.join(_KEYS)}")


def _in_order(numbers: list[int], names: list[Any]) -> list[str]:
    if sorted(numbers) != list(range(len(numbers))):
        last = len(numbers) - 1
        missing = sorted(set(range(len(numbers))) - set(numbers))
        repeated = sorted(number for number, times in Counter(numbers).items() if times > 1)
        message = f"{repeated[0]} is there twice" if repeated else f"{missing[0]} is missing"
        raise ValueError(f"does not number its {len(numbers)} classes from 0 to {last}: {message}")
    placed = dict(zip(numbers, names, strict=True))
    return _checked([placed[number] for number in range(len(numbers))])


def _checked(names: list[Any]) -> list[str]:
    if not names:
        raise ValueError("is an empty list")
    for number, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"has {name!r:.60} as the name of class {number}, not a text")
        if not name.strip():
            raise ValueError(f"has a blank name for class {number}")
    return names


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_numbers(values: Iterable[Any]) -> bool:
    """Return whether all values are whole numbers, or texts of digits."""
    return all(_is_number(value) or (isinstance(value, str) and value.isdecimal()) for value in values)


def _parse_json(text: str) -> Any:
    try:
        return parse_json(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise ValueError(f"looks like JSON and is not: {error}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"has the key {key!r} twice")
    return made


def _names_of_lines(text: str) -> list[str]:
    lines = re.split(r"\r\n|\n|\r", text.rstrip())
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"has a blank line, line {number}: which class has no name?")
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"has {len(line)} characters in line {number}, which are no name")
        if line.startswith(("<", "#")):
            raise ValueError(f"has {line.strip()[:40]!r} in line {number}, which is no name")
    for message in _suspicions(lines):
        raise ValueError(f"is not one name per line: {message}, as in {lines[-1].strip()[:60]!r}")
    return [line.strip() for line in lines]


def _suspicions(lines: list[str]) -> Iterator[str]:
    """Say what the lines look like if they hold more than a name each."""
    # The first line may be the header of a table.
    body = lines[1:] if len(lines) > 2 else lines
    if len(lines) > 1 and all(_NUMBER_FIRST.match(line) for line in body):
        yield "its lines begin with a number"
    if len(lines) > 1 and all(_NUMBER_LAST.match(line) for line in body):
        yield "its lines end with a number"
    if len(lines) > 1 and all(re.match(r"\s*\d+[.)]\s+\S", line) for line in body):
        yield "its lines are a numbered list"
    if all(re.search(r"[,;]\s*$", line) for line in body):
        yield "its lines end with a separator"
    if all("\t" in line.strip() for line in body):
        yield "its lines have columns"
    if all(_SYNSET_FIRST.match(line) for line in body):
        yield "its lines begin with a WordNet number"
    if all(re.match(r"\s*- \S", line) for line in body):
        yield "its lines are a YAML list"
    if all(re.match(r"\s*(['\"]).*\1,?$", line.rstrip()) for line in body):
        yield "its lines are in quotes"
    if _numbered(lines):
        yield "its lines are numbered"


def _numbered(lines: list[str]) -> bool:
    """Return whether lines are number and name, or name and number, separated by a space; names may hold numbers."""
    first = [match for match in map(_NUMBER_SPACE_FIRST.match, lines) if match]
    if len(first) == len(lines) > 1 and _all_differ([m[1] for m in first]) and _all_differ([m[2] for m in first]):
        return True
    last = [match for match in map(_NUMBER_SPACE_LAST.match, lines) if match]
    numbers = sorted(int(match[2]) for match in last)
    counts = numbers in (list(range(len(lines))), list(range(1, len(lines) + 1)))
    return len(last) == len(lines) > 1 and counts and _all_differ([match[1] for match in last])


def _all_differ(values: list[str]) -> bool:
    return len(set(values)) == len(values)
