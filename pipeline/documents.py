"""Parse JSON and YAML that strangers may have written, without running code or using much memory."""

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

# Aliases of YAML let a few lines stand for billions of entries. A config or a dataset card has thousands at most.
_MOST_ENTRIES = 1_000_000
_DEEPEST = 100
_OCTAL = re.compile("[-+]?0[0-7_]+")
_OF_SIXTIES = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_EVENTS: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_json(text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return the plain data that a JSON text holds.

    Raises:
        json.JSONDecodeError: it is not JSON, or is nested too deeply for Python's parser.
    """
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", "", 0) from error


def parse_yaml(text: str, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """Return the plain data that a YAML text holds; tags such as `!!python/object` are refused.

    Args:
        text: content of one document.
        load: function that parses the text, without making anything but plain data.

    Raises:
        yaml.YAMLError: it is not YAML.
        ValueError: it is nested too deeply, or its aliases stand for more than a million entries.
    """
    _check_depth(text)
    if "&" in text and "*" in text:
        _check_aliases(text)
    return load(text)


def check_keys_differ(text: str) -> None:
    """Refuse YAML in which a mapping has a key twice: its parsers take the last one and drop the others.

    Args:
        text: text that `parse_yaml` reads.

    Raises:
        ValueError: a key comes twice; the message gives its line.
    """
    nodes, known = [yaml.compose(text, Loader=_EVENTS)], set()
    while nodes:
        node = nodes.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
            continue
        keys: set[str] = set()
        for key, value in node.value:
            # Several merges (`<<`) all count.
            if key.value in keys and key.tag != "tag:yaml.org,2002:merge":
                raise ValueError(f"{key.value!r} comes twice, again in line {key.start_mark.line + 1}: give it once")
            keys.update([key.value] if isinstance(key, yaml.ScalarNode) else [])
            nodes.append(value)


def check_numbers(text: str) -> None:
    """Refuse YAML with zero-padded numbers, which are octal, and with colons, by which it counts in sixties.

    `010` is 8, and as a flag it is 10; `1:30`, which may be meant as a range, is 90.

    Args:
        text: text that `parse_yaml` reads.

    Raises:
        ValueError: there is such a number; the message gives its line.
    """
    for event in yaml.parse(text, Loader=_EVENTS):
        if not isinstance(event, yaml.ScalarEvent) or not event.implicit[0]:
            continue
        line = event.start_mark.line + 1
        if _OF_SIXTIES.fullmatch(event.value):
            raise ValueError(f"{event.value} in line {line} counts in sixties in YAML: write '{event.value}' for text")
        if _OCTAL.fullmatch(event.value):
            plain = re.sub(r"^([-+]?)[0_]+(?=.)", r"\1", event.value)
            raise ValueError(
                f"{event.value} in line {line} is octal in YAML: write {plain}, or '{event.value}' for text"
            )


def _check_depth(text: str) -> None:
    """Refuse nesting at which the composers overflow: that in C would end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_EVENTS):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")


def _check_aliases(text: str) -> None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and _num_entries(root, {}) > _MOST_ENTRIES:
        raise ValueError(f"its aliases (*name) stand for more than {_MOST_ENTRIES} entries")


def _num_entries(node: Any, known: dict[int, int]) -> int:
    """Return how many entries a node has with its aliases written out; one that contains itself has endlessly many."""
    if id(node) not in known:
        known[id(node)] = _MOST_ENTRIES + 1
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_num_entries(part, known) for part in parts)
    return known[id(node)]
