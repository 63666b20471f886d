"""What a model's classes are called."""

import json
from collections import Counter

import timm.data
from torch import nn

from pipeline.errors import ConfigError, DatasetError
from pipeline.models.config import ModelConfig
from pipeline.storage import read_bytes


def class_names(config: ModelConfig, model: nn.Module) -> list[str]:
    """The names of a model's classes: given, or its own, or timm's for ImageNet, or numbers.

    Raises:
        ConfigError: as many names as the model has classes cannot be read, or two are the same.
    """
    count = int(model.num_classes)  # type: ignore[arg-type]
    given = config.class_names
    names = _read_names(given) if isinstance(given, str) else given if given is not None else _own_names(model, count)
    if len(names) != count:
        raise ConfigError(f"class_names has {len(names)} names, model {config.name!r} has {count} classes")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ConfigError(f"class_names must differ; repeated: {repeated[:5]}")
    return list(names)


def _read_names(uri: str) -> list[str]:
    try:
        text = read_bytes(uri).decode()
    except (DatasetError, UnicodeDecodeError) as error:
        raise ConfigError(f"class_names: {error}") from error
    if text.lstrip().startswith("["):
        try:
            return [str(name) for name in json.loads(text)]
        except ValueError as error:
            raise ConfigError(f"class_names: {uri!r} is not a JSON list: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _own_names(model: nn.Module, count: int) -> list[str]:
    own = model.pretrained_cfg  # type: ignore[assignment]
    labels = own.get("label_names")  # type: ignore[union-attr]
    if labels:
        ordered = [labels[key] for key in sorted(labels, key=int)] if isinstance(labels, dict) else list(labels)
        if len(ordered) == count:
            return [str(name) for name in ordered]
    subset = timm.data.infer_imagenet_subset(model) if own.get("num_classes") == count else None  # type: ignore[union-attr]
    if subset is None:
        return [str(index) for index in range(count)]
    info = timm.data.ImageNetInfo(subset)
    described = list(info.label_descriptions())
    times = Counter(described)
    # Two synsets may share a description ("crane"): the synset tells them apart.
    return [
        text if times[text] == 1 else f"{text} ({synset})"
        for text, synset in zip(described, info.label_names(), strict=True)
    ]
