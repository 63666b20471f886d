"""Find the class names of a model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import timm.data
from torch import nn

from pipeline.errors import ConfigError, first_few
from pipeline.models.config import LOCAL_DIR, ModelConfig
from pipeline.models.folders import read_model_config
from pipeline.models.name_files import names_in_config, read_class_names


def class_names(config: ModelConfig, model: nn.Module, *, trained: bool = True) -> tuple[list[str], tuple[str, ...]]:
    """Return the names of a model's classes: the given ones, else its own, else timm's for ImageNet, else numbers.

    Args:
        config: settings of the model, which may hold the names, or the URI of a file of names.
        model: the model that needs names, one for each class.
        trained: whether the names that the model states itself apply. A model that is yet to be trained may have had
            other classes.

    Returns:
        The names, and a notice if a user's own weights get ImageNet's only because of the number of classes, or if the
        model's own repeat.

    Raises:
        ConfigError: the names cannot be read, their number is not that of the classes, one is blank, or two are equal.
    """
    count, given = int(model.num_classes), config.class_names  # type: ignore[arg-type]
    names, notices = read_class_names(given) if isinstance(given, str) else given, ()
    if names is None:
        stated = _own_names(config.name, model, count, trained)
        names = None if stated is None else distinct_names(stated)
        notices = _changed(config.name, stated or (), names or ())
    if names is None:
        names, notices = _assumed_names(config, model, count, trained)
    _check_names(names, count, config)
    return list(names), notices


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return the names with repeated ones made different: ImageNet, as transformers has it, has two classes "crane".

    They get the WordNet number of the class where it is ImageNet's of that name and number, else the class's number.
    """
    times = Counter(names)
    if len(times) == len(names):
        return list(names)
    synsets = _imagenet_synsets(names)
    return [
        name if times[name] == 1 else f"{name} ({synsets.get(number, number)})" for number, name in enumerate(names)
    ]


def _imagenet_synsets(names: Sequence[str]) -> dict[int, str]:
    """Return the WordNet numbers of those classes that ImageNet-1k calls by the same name at the same number."""
    info = timm.data.ImageNetInfo("imagenet-1k")
    if len(names) != info.num_classes():
        return {}
    described = zip(names, info.label_descriptions(), info.label_names(), strict=True)
    return {
        number: synset
        for number, (name, description, synset) in enumerate(described)
        if name in (description, description.partition(", ")[0])
    }


def _changed(name: str, stated: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    changed = [new for old, new in zip(stated, names, strict=True) if old != new]
    if not changed:
        return ()
    return (f"model {name!r}: class names that repeat got the number of their class: {first_few(map(repr, changed))}",)


def _check_names(names: Sequence[str], count: int, config: ModelConfig) -> None:
    where = "class_names" if config.class_names is not None else f"model {config.name!r}: its own class names"
    if len(names) != count:
        raise ConfigError(f"class_names has {len(names)} names, model {config.name!r} has {count} classes")
    if blank := [label for label, name in enumerate(names) if not name.strip()]:
        raise ConfigError(f"{where}: the name of class {blank[0]} is blank")
    for label, name in enumerate(names):
        if any(0xD800 <= ord(character) < 0xE000 for character in name):
            raise ConfigError(
                f"{where}: the name of class {label}, {name!r}, holds half a character: no file can hold it"
            )
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ConfigError(f"{where} must differ; repeated: {repeated[:5]}; set class_names to override them")


def _own_names(name: str, model: nn.Module, count: int, trained: bool) -> Sequence[str] | None:
    """Return the names that the model's own config states; None if it states none."""
    own: Any = model.pretrained_cfg
    labels = own.get("label_names")
    what = "label_names" if labels else "class names"
    # timm keeps only `label_names` of what a folder's config.json says about classes.
    stated = read_model_config(name.removeprefix(LOCAL_DIR)) if name.startswith(LOCAL_DIR) else {}
    try:
        names = names_in_config({**stated, **({"label_names": labels} if labels else {})})
    except ValueError as error:
        where = "label_names" if labels else "config.json"
        raise ConfigError(f"model {name!r}: its own {where} {error}; set class_names to override them") from error
    if names is None or len(names) == count:
        return names
    if trained:
        raise ConfigError(f"model {name!r} has {count} classes and {len(names)} {what} of its own: give class_names")
    return None


def _assumed_names(
    config: ModelConfig, model: nn.Module, count: int, trained: bool
) -> tuple[list[str], tuple[str, ...]]:
    """Return ImageNet's names if their number fits, with a notice for a user's own weights; otherwise numbers."""
    names = _imagenet_names(model, count)
    if names is None:
        return [str(index) for index in range(count)], ()
    if not trained or (config.checkpoint is None and not config.name.startswith(LOCAL_DIR)):
        return names, ()
    return names, (
        f"model {config.name!r} has {count} classes without names: ImageNet's names, in ImageNet's order, are used; "
        "set class_names to override them",
    )


def _imagenet_names(model: nn.Module, count: int) -> list[str] | None:
    """Return timm's names of the ImageNet classes, if the model has as many; they are all different."""
    own: Any = model.pretrained_cfg
    subset = timm.data.infer_imagenet_subset(model) if own.get("num_classes") == count else None
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    described = list(info.label_descriptions())
    times = Counter(described)
    # Two synsets may share a description ("crane"); the synset is added to distinguish them.
    return [
        text if times[text] == 1 else f"{text} ({synset})"
        for text, synset in zip(described, info.label_names(), strict=True)
    ]
