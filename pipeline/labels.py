"""Which of a model's classes each class of a dataset is."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import timm.data

from pipeline.dataset.classes import as_number

_SYNSET = re.compile(r"n\d{8}")
# A description with its synset, where timm's description alone fits two classes: `crane (n02012849)`.
_DESCRIBED = re.compile(r".+ \((n\d{8})\)")
_SUBSETS = ("imagenet-1k", "imagenet-22k")
# Other spellings of a few names among very many, at the same numbers, are no other classes: ImageNet's in Hugging Face
# datasets and in timm differ in two of 1000.
_MOST_OTHER_SPELLINGS = 0.01


def match_classes(given: Sequence[str], own: Sequence[str]) -> list[int | None]:
    """Match the names of a dataset's classes with those of a model's.

    A name matches the same name, else one that differs in case, spaces, hyphens and underscores, or in zeros before a
    number, else the description or the synset of the same ImageNet class. What matches several names matches none.

    Args:
        given: names of the dataset's classes.
        own: names of the model's classes, all different.

    Returns:
        For each given name the number of the model's class; None where none matches.
    """
    number = {name: label for label, name in enumerate(own)}
    if all(name in number for name in given):
        labels: list[int | None] = [number[name] for name in given]
    else:
        labels = _match_loosely(given, own)
    times = Counter(labels)
    return [label if times[label] == 1 else None for label in labels]


def only_spelled_otherwise(given: Sequence[str], labels: Sequence[int | None], own: Sequence[str]) -> bool:
    """Return whether names without a match are other spellings: hardly any, and all others have their own numbers.

    Args:
        given: names of the dataset's classes.
        labels: what `match_classes` returned for them.
        own: names of the model's classes.
    """
    unmatched = labels.count(None)
    in_place = all(label in (None, place) for place, label in enumerate(labels))
    return len(given) == len(own) and in_place and unmatched <= _MOST_OTHER_SPELLINGS * len(own)


def _match_loosely(given: Sequence[str], own: Sequence[str]) -> list[int | None]:
    as_written = _label_of(map(_names_of, own))
    plain = _label_of(map(_plain_names_of, own))
    # Two classes may differ in case alone: `Jersey`, the cow, and `jersey`, which is worn.
    labels = [_one_of(as_written, _names_of(name)) for name in given]
    return [
        _one_of(plain, _plain_names_of(name)) if label is None else label
        for name, label in zip(given, labels, strict=True)
    ]


def _label_of(names: Iterable[set[str]]) -> dict[str, int | None]:
    """Return name → number of the class that has it; None where several have."""
    found: dict[str, int | None] = {}
    for label, same in enumerate(names):
        for name in same:
            found[name] = None if name in found else label
    return found


def _one_of(label_of: Mapping[str, int | None], names: set[str]) -> int | None:
    labels = {label_of.get(name) for name in names} - {None}
    return labels.pop() if len(labels) == 1 else None


def _names_of(name: str) -> set[str]:
    """Return a name, and the synset and the description of the ImageNet class that it stands for."""
    described = _DESCRIBED.fullmatch(name)
    synset = name if _SYNSET.fullmatch(name) else described[1] if described else None
    return {name} if synset is None else {name, synset, _descriptions().get(synset, synset)}


def _plain_names_of(name: str) -> set[str]:
    return set(map(_plain, _names_of(name)))


def _plain(name: str) -> str:
    number = as_number(name)
    if number is not None:
        return str(number)
    text = unicodedata.normalize("NFKC", name).casefold()
    # `1-0` is not 10.
    return re.sub(r"[\s_-]+", "" if any(map(str.isalpha, text)) else " ", text).strip()


@cache
def _descriptions() -> dict[str, str]:
    """Return synset → description, of those whose description no other class of the same set has."""
    found: dict[str, str] = {}
    for subset in reversed(_SUBSETS):
        info = timm.data.ImageNetInfo(subset)
        described = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
        times = Counter(described.values())
        found = {synset: text for synset, text in found.items() if synset not in described}
        found |= {synset: text for synset, text in described.items() if times[text] == 1}
    return found
