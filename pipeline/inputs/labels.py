"""Map the classes of a dataset to a model's."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import timm.data

from pipeline.dataset.classes import as_number, differ_in_numbers, doubtful_order, misnumbered
from pipeline.dataset.schema import UNKNOWN
from pipeline.dataset.source import Source
from pipeline.errors import DatasetError
from pipeline.models import LoadedModel

# A synset, perhaps before its description, as in class folders: `n02085620-Chihuahua`.
_SYNSET = re.compile(r"(n\d{8})(?:[-_ .:,]+\S.*)?")
# A description with its synset, for descriptions that two classes share: `crane (n02012849)`.
_DESCRIBED = re.compile(r".+ \((n\d{8})\)")
_SUBSETS = ("imagenet-1k", "imagenet-22k")
# If only this share of the names differs, at the same numbers, the classes are the same: the names of ImageNet in
# Hugging Face datasets and in timm differ in two of 1000.
_MAX_OTHER_SPELLINGS = 0.01
# Classes in a message.
_SHOWN = 3


def map_labels(source: Source, loaded: LoadedModel, *, needed: bool) -> tuple[list[int] | None, str | None]:
    """Return the model's label for each of the source's, and a message about them for the user.

    The labels are None if the source has numbers without names, which are taken as the model's, as a message says. If
    labels are not needed, classes that the model does not have get `UNKNOWN`.

    Args:
        source: the source that the labels belong to.
        loaded: the model whose classes the labels are mapped to.
        needed: whether labels are needed. If not, classes that the model lacks are accepted.

    Raises:
        DatasetError: labels are needed, and the source's classes cannot be found among the model's.
    """
    names, own = source.class_names, loaded.class_names
    if names is None:
        silent = not needed or _are_bare_numbers(own)
        return None, None if silent else _numbered_as(source, loaded)
    found = match_classes(names, own)
    unknown = [place for place, label in enumerate(found.labels) if label is None]
    if not unknown or not needed:
        return [UNKNOWN if label is None else label for label in found.labels], None
    if only_spelled_otherwise(names, found, own):
        message = f"the classes {_pairs(names, own, unknown)} are taken to be the same"
        return list(range(len(names))), f"{source.uri!r} and model {loaded.name!r}: {message}"
    refusal = _why_not_by_number(source, loaded, found)
    if refusal is not None:
        remedy = (
            "name the classes as the model does, or list names of these in the model's order in teacher.class_names"
        )
        raise DatasetError(f"{source.uri!r} {refusal}: {remedy}")
    message = f"no class of {source.uri!r} has the name of one of model {loaded.name!r}: labels go by number"
    return list(range(len(names))), f"{message}: {_pairs(names, own, range(len(names)))}"


def _numbered_as(source: Source, loaded: LoadedModel) -> str:
    """Say how labels without names are read."""
    own = loaded.class_names
    first = ", ".join(f"{label} is {name!r}" for label, name in enumerate(own[:_SHOWN]))
    more = ", ..." if len(own) > _SHOWN else ""
    return f"labels of {source.uri!r} have no names, and are read as numbers of model {loaded.name!r}: {first}{more}"


def _why_not_by_number(source: Source, loaded: LoadedModel, found: "ClassMatch") -> str | None:
    """Say why labels cannot go by number if not all names match, as the predicate of a sentence; None if they can."""
    names, own, model = source.class_names or [], loaded.class_names, f"model {loaded.name!r}"
    if found.ambiguous:
        return f"has the class {found.ambiguous[0]!r}, which is no single class of {model}: names differ too little"
    known = next((name for name, label in zip(names, found.labels, strict=True) if label is not None), None)
    if known is not None:
        unknown = names[found.labels.index(None)]
        return f"has the class {unknown!r}, which {model} does not have by that name, although it has {known!r}"
    if len(names) != len(own):
        return (
            f"has {len(names)} classes, {_some(names)}, {model} has {len(own)}, {_some(own)}, and no name is the same, "
            "so no label is known"
        )
    meant = next((name for name in (*names, *own) if _description_of(name) is not None), None)
    if meant is not None and not any(map(_are_bare_numbers, (names, own))):
        return (
            f"has the classes {_some(names)}, {model} has {_some(own)}: no name is the same, and the order is not "
            f"known, although it is known what {meant!r} is, {_description_of(meant)!r}"
        )
    doubtful = doubtful_order(names) if source.of_folders else None
    if doubtful is not None:
        return (
            f"has no class folder with the name of a class of {model}, and the order of the folders is not known: "
            f"{doubtful[0]!r} and {doubtful[1]!r} are sorted differently by torchvision and by timm"
        )
    wrong = misnumbered(names)
    if wrong is not None:
        label = names.index(wrong)
        return (
            f"has numbered classes, and {wrong!r} would get label {label}, {own[label]!r} of {model}: a number is "
            "missing, or they are sorted as text"
        )
    return None


def _pairs(names: Sequence[str], own: Sequence[str], labels: Sequence[int]) -> str:
    """Describe the first labels by their names on both sides."""
    pairs = [f"{names[label]!r} is {own[label]!r}" for label in labels[:_SHOWN]]
    return ", ".join([*pairs, "..."] if len(labels) > _SHOWN else pairs)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*map(repr, names[:2]), "..."])


@dataclass(frozen=True)
class ClassMatch:
    """The model's class for each class of a dataset.

    Attributes:
        labels: for each class of the dataset the number of the model's class, or None where no single class matches.
        ambiguous: names of the dataset's classes that match several classes of the model, or the same class as another
            name.
    """

    labels: list[int | None]
    ambiguous: list[str]


def match_classes(dataset_names: Sequence[str], model_names: Sequence[str]) -> ClassMatch:
    """Match the names of a dataset's classes with those of a model's.

    A name matches the same name; else the description or synset of the same ImageNet class; else a name that differs
    only in case, spaces, hyphens, underscores or leading zeros; else, of an ImageNet class, one of the words that its
    description lists, if no other class has it. Stricter matches go first: if a model has `na`, a dataset's `na` is
    that class, and its `NA` matches none.

    Args:
        dataset_names: names of the dataset's classes.
        model_names: names of the model's classes, all different.
    """
    labels: list[int | None] = [None] * len(dataset_names)
    ambiguous: set[int] = set()
    # Two classes may differ only in case: `Jersey`, the cow, and `jersey`, the garment.
    for names_of in (_as_written, _names_of, _plain_names_of, _words_of):
        rest = [place for place, label in enumerate(labels) if label is None and place not in ambiguous]
        if not rest:
            break
        labels_of = _labels_by_name(map(names_of, model_names))
        taken = {label for label in labels if label is not None}
        found = {place: _fitting(labels_of, names_of(dataset_names[place]), taken) for place in rest}
        times = Counter(label for fitting in found.values() for label in fitting)
        several = {place for place, fitting in found.items() if any(times[label] > 1 for label in fitting)}
        several |= {place for place, fitting in found.items() if len(fitting) > 1}
        # A word that fits several classes does not make their own names too much alike.
        ambiguous |= set() if names_of is _words_of else several
        for place in found.keys() - several:
            labels[place] = next(iter(found[place]), None)
    return ClassMatch(labels, [dataset_names[place] for place in sorted(ambiguous)])


def only_spelled_otherwise(dataset_names: Sequence[str], match: ClassMatch, model_names: Sequence[str]) -> bool:
    """Return whether unmatched names are just other spellings: very few, and all other names have equal numbers.

    Args:
        dataset_names: names of the dataset's classes.
        match: result of `match_classes` for them.
        model_names: names of the model's classes.
    """
    unmatched = match.labels.count(None)
    in_place = all(label in (None, place) for place, label in enumerate(match.labels))
    few = unmatched <= _MAX_OTHER_SPELLINGS * len(model_names)
    return len(dataset_names) == len(model_names) and in_place and few and not match.ambiguous


def _labels_by_name(names: Iterable[set[str]]) -> dict[str, set[int]]:
    """Return name → numbers of the classes that have it."""
    found: dict[str, set[int]] = {}
    for label, same in enumerate(names):
        for name in same:
            found.setdefault(name, set()).add(label)
    return found


def _fitting(labels_of: Mapping[str, set[int]], names: set[str], taken: set[int]) -> set[int]:
    """Return the numbers of classes that have one of the names, preferring names that a single class has."""
    found = [labels_of[name] for name in names if name in labels_of]
    single = set().union(*(labels for labels in found if len(labels) == 1))
    fitting = single or set().union(*found)
    return set() if fitting <= taken else fitting


def _as_written(name: str) -> set[str]:
    return {name}


def _names_of(name: str) -> set[str]:
    """Return a name with the synset and description of its ImageNet class."""
    synset = _synset_of(name)
    return {name} if synset is None else {name, synset, _descriptions().get(synset, synset)}


def _synset_of(name: str) -> str | None:
    match = _SYNSET.fullmatch(name) or _DESCRIBED.fullmatch(name)
    return None if match is None else match[1]


def _description_of(name: str) -> str | None:
    """Return the description of the ImageNet class whose synset a name states; None if it states none."""
    return _all_descriptions().get(_synset_of(name) or "")


def _are_bare_numbers(names: Sequence[str]) -> bool:
    """Return whether names say nothing but numbers of classes: `0`, `1`, or `class_0`, `class_1`."""
    return differ_in_numbers(names) and _description_of(names[0]) is None


def _plain_names_of(name: str) -> set[str]:
    return set(map(_plain, _names_of(name)))


def _words_of(name: str) -> set[str]:
    """Return a plain name with the words that the description of its ImageNet class lists: `chain saw`, `chainsaw`."""
    synset = _synset_of(name) or _synsets().get(name, "")
    return _plain_names_of(name) | _words().get(synset, set())


def _plain(name: str) -> str:
    number = as_number(name)
    if number is not None:
        return str(number)
    text = unicodedata.normalize("NFKC", name).casefold()
    # `1-0` is not 10.
    return re.sub(r"[\s_-]+", "" if any(map(str.isalpha, text)) else " ", text).strip()


@cache
def _descriptions() -> dict[str, str]:
    """Return synset → description, for descriptions that no other class of the same set has."""
    found: dict[str, str] = {}
    for described in _sets():
        times = Counter(described.values())
        found = {synset: text for synset, text in found.items() if synset not in described}
        found |= {synset: text for synset, text in described.items() if times[text] == 1}
    return found


@cache
def _synsets() -> dict[str, str]:
    """Return description → synset, for the descriptions that `_descriptions` returns."""
    return {text: synset for synset, text in _descriptions().items()}


@cache
def _words() -> dict[str, set[str]]:
    """Return synset → plain words of its description that no other class of the same set has."""
    found: dict[str, set[str]] = {}
    for described in _sets():
        words = {synset: set(map(_plain, text.split(", "))) for synset, text in described.items()}
        times = Counter(word for own in words.values() for word in own)
        found |= {synset: {word for word in own if times[word] == 1} for synset, own in words.items()}
    return found


@cache
def _all_descriptions() -> dict[str, str]:
    return {synset: text for described in _sets() for synset, text in described.items()}


def _sets() -> Iterator[dict[str, str]]:
    """Yield sets of classes as mappings of synset → description. For a class in several sets, the last one counts."""
    for subset in reversed(_SUBSETS):
        info = timm.data.ImageNetInfo(subset)
        yield dict(zip(info.label_names(), info.label_descriptions(), strict=True))
