"""Selectors of nodes by label, with Ray's syntax and meaning. Imports no Ray, because configs are checked with it."""

import re
from collections.abc import Mapping, Sequence

from pipeline.errors import ConfigError

Selector = Mapping[str, str]

NODE_ID = "ray.io/node-id"
_WORD = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"(?:[a-zA-Z0-9][a-zA-Z0-9_.-]{{0,252}}/)?{_WORD}")
_VALUE = re.compile(rf"!?(?:{_WORD}|in\({_WORD}(?:, ?{_WORD})*\))")


def check_selectors(label_selector: Selector, fallback: Sequence[Selector]) -> None:
    """Refuse selectors that Ray would refuse once the pool starts, or that could never have an effect.

    Raises:
        ConfigError: a selector is of that kind; the message names setting, label and value.
    """
    if fallback and not label_selector:
        raise ConfigError(f"pool.fallback {list(fallback)} comes after pool.label_selector, which is not set")
    named = [("pool.label_selector", label_selector), *((f"pool.fallback[{i}]", s) for i, s in enumerate(fallback))]
    for name, selector in named:
        for label, value in selector.items():
            if label == NODE_ID:
                raise ConfigError(f"{name} has {NODE_ID!r}, by which broken nodes are avoided: choose by another label")
            if not _KEY.fullmatch(label):
                raise ConfigError(f"{name} has {label!r}, which is no label: give NAME or PREFIX/NAME")
            if not _VALUE.fullmatch(value):
                raise ConfigError(f"{name}.{label} must be VALUE, '!VALUE', 'in(A, B)' or '!in(A, B)', not {value!r}")


def matches(labels: Mapping[str, str], selector: Selector) -> bool:
    """Return whether a node with these labels is selected; an empty selector selects every node."""
    return all(_allows(value, labels.get(label)) for label, value in selector.items())


def _allows(value: str, found: str | None) -> bool:
    wanted = value.removeprefix("!").removeprefix("in(").removesuffix(")").split(",")
    return (found in [word.strip() for word in wanted]) != value.startswith("!")


def ray_options(selectors: Sequence[Selector], avoided: Sequence[str] = ()) -> dict[str, object]:
    """Return Ray's options of an actor for nodes that match one of the selectors, in order of preference.

    Args:
        selectors: selectors in order of preference; empty if any node will do.
        avoided: ids of nodes that are not to be used.
    """
    elsewhere = {NODE_ID: f"!in({', '.join(avoided)})"} if avoided else {}
    first, *others = [{**selector, **elsewhere} for selector in selectors or ({},)]
    options: dict[str, object] = {"label_selector": first} if first else {}
    return options | ({"fallback_strategy": [{"label_selector": other} for other in others]} if others else {})
