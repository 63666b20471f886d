"""Find the class names of a model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import timm.data
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.config import LOCAL_DIR, ModelConfig
from pipeline.models.folders import read_model_config
from pipeline.models.name_files import names_in_config, read_class_names


def class_names(config: ModelConfig, model: nn.Module, *, trained: bool = True) -> list[str]:
    """Return the names of a model's classes: the given ones, else its own, else timm's for ImageNet, else numbers.

    Args:
        config: may hold the names, or the URI of a file of names.
        model: the model.
        trained: whether its own names apply; a model that is yet to be trained may have had other classes.

    Raises:
        ConfigError: the names cannot be read, their number is not that of the classes, one is blank, or two are equal.
    """
    count = int(model.num_classes)  # type: ignore[arg-type]
    given = config.class_names
    where = "class_names" if given is not None else f"model {config.name!r}: its own class names"
    if isinstance(given, str):
        names = read_class_names(given)
    else:
        names = given if given is not None else _own_names(config.name, model, count, trained)
    if len(names) != count:
        raise ConfigError(f"class_names has {len(names)} names, model {config.name!r} has {count} classes")
    if blank := [label for label, name in enumerate(names) if not name.strip()]:
        raise ConfigError(f"{where}: the name of class {blank[0]} is blank")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ConfigError(f"{where} must differ; repeated: {repeated[:5]}; class_names may give others")
    return list(names)


def assumed_names_notice(config: ModelConfig, model: nn.Module) -> tuple[str, ...]:
    """Return a notice if a user's own weights get ImageNet's class names only because of their number; else nothing."""
    own: Any = model.pretrained_cfg
    users_own = config.checkpoint is not None or config.name.startswith(LOCAL_DIR)
    if config.class_names is not None or not users_own or _imagenet_subset(model) is None:
        return ()
    if names_in_config({**_folder_config(config.name), **_timm_labels(own)}) is not None:
        return ()
    return (
        f"model {config.name!r} has {model.num_classes} classes without names: they get those of ImageNet, "
        "in ImageNet's order; class_names may give others",
    )


def _imagenet_subset(model: nn.Module) -> str | None:
    own: Any = model.pretrained_cfg
    return timm.data.infer_imagenet_subset(model) if own.get("num_classes") == model.num_classes else None


def _folder_config(name: str) -> dict[str, Any]:
    """Return the `config.json` of a folder; of the class names in it timm keeps only `label_names`."""
    return read_model_config(name.removeprefix(LOCAL_DIR)) if name.startswith(LOCAL_DIR) else {}


def _timm_labels(own: dict[str, Any]) -> dict[str, Any]:
    return {"label_names": own["label_names"]} if own.get("label_names") else {}


def _own_names(name: str, model: nn.Module, count: int, trained: bool) -> Sequence[str]:
    own: Any = model.pretrained_cfg
    what = "label_names" if own.get("label_names") else "class names"
    try:
        names = names_in_config({**_folder_config(name), **_timm_labels(own)})
    except ValueError as error:
        raise ConfigError(f"model {name!r}: its own {what} {error}; class_names may give others") from error
    if names is not None and len(names) == count:
        return names
    if names is not None and trained:
        raise ConfigError(f"model {name!r} has {count} classes and {len(names)} {what} of its own: give class_names")
    subset = _imagenet_subset(model)
    if subset is None:
        return [str(index) for index in range(count)]
    info = timm.data.ImageNetInfo(subset)
    described = list(info.label_descriptions())
    times = Counter(described)
    # Two synsets may share a description ("crane"); the synset is added to distinguish them.
    return [
        text if times[text] == 1 else f"{text} ({synset})"
        for text, synset in zip(described, info.label_names(), strict=True)
    ]
