"""timm models made by name, with weights from timm, a checkpoint or a folder; and written as such a folder."""

import dataclasses
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import timm
import timm.data
import timm.models
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ConfigError, ModelError, one_line
from pipeline.models.checkpoints import read_state_dict
from pipeline.models.class_names import class_names
from pipeline.models.config import LOCAL_DIR, ModelConfig
from pipeline.models.weights import (
    check_finite_weights,
    check_first_layer,
    check_heads,
    describe_misfit,
    weight_digest,
)

# What timm raises for an unknown name, an argument a family does not take, a missing or unfitting weight file, and
# (huggingface_hub, a ValueError or OSError) for weights that cannot be downloaded; a corrupt file raises what its
# reader stumbles over.
_TIMM_ERRORS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError, OSError, EOFError),
    *(pickle.UnpicklingError, safetensors.SafetensorError, struct.error),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, on the CPU, in float32, with all that is needed to feed it and to name its classes.

    Attributes:
        class_names: one for each class, all different.
        mean, std: of pixels in [0, 1], one for each channel.
        input_size: channels, height and width in pixels.
        digest: SHA-256 of the weights.
        data_config: timm's resolved data config (interpolation, crop_pct, ...).
    """

    model: nn.Module
    name: str
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    digest: str
    data_config: dict[str, Any]

    @property
    def names_known(self) -> bool:
        """Whether its classes have names that are more than their numbers."""
        return self.class_names != [str(label) for label in range(len(self.class_names))]


def load_model(config: ModelConfig, *, trained: bool = True) -> LoadedModel:
    """Make a model and fill in its weights.

    Args:
        config: which one.
        trained: the whole model must come from a file, as a teacher's does. A student may start from random weights
            or with a new head.

    Raises:
        ModelError: unknown name, arguments the family does not take, or another class count than its weights have.
        CheckpointError: weights missing, corrupt, unsafe, not finite or of another model.
        ConfigError: class names or normalization that do not fit the model.
    """
    model = _create(config, trained).eval()
    check_finite_weights(config.checkpoint or config.name, model)
    data_config = timm.data.resolve_data_config({}, model=model)
    channels, height, width = _input_size(model, data_config)
    mean = _per_channel("mean", config.mean, data_config["mean"], channels)
    std = _per_channel("std", config.std, data_config["std"], channels)
    data_config |= {"input_size": (channels, height, width), "mean": mean, "std": std}
    return LoadedModel(
        model=model,
        name=config.name,
        class_names=class_names(config, model),
        mean=mean,
        std=std,
        input_size=(channels, height, width),
        digest=weight_digest(model),
        data_config=data_config,
    )


def save_model(
    model: nn.Module, folder: str | Path, *, class_names: list[str], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Write a local folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, weights as safetensors.

    Args:
        model: made by `timm.create_model`, which recorded the arguments to make it again.
    """
    data_config = {
        "mean": mean,
        "std": std,
        "input_size": model_input_size(model),
    }
    timm.models.save_for_hf(  # pyright: ignore[reportPrivateImportUsage]
        model,
        str(folder),
        model_config={"label_names": list(class_names)},
        safe_serialization=True,
        data_config=data_config,
    )


def model_input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width in pixels of the images that a timm model was made for."""
    return _input_size(model, timm.data.resolve_data_config({}, model=model))


class RealImageTransform:
    """timm's evaluation transform of a model's own config, for images of any size and mode."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._mode = "L" if loaded.input_size[0] == 1 else "RGB"
        self._transform: Callable[[Image.Image], Tensor] = timm.data.create_transform(  # type: ignore[assignment]
            **loaded.data_config, is_training=False
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Normalized float32 [C, H, W]."""
        return self._transform(image.convert(self._mode))


def _create(config: ModelConfig, trained: bool) -> nn.Module:
    from_folder = config.name.startswith(LOCAL_DIR) and config.checkpoint is None
    if trained and not (from_folder or config.pretrained or config.checkpoint):
        raise ModelError(
            f"model {config.name!r} has no trained weights: set pretrained, checkpoint, or a {LOCAL_DIR} name"
        )
    if config.checkpoint is not None:
        return _create_with_checkpoint(config, config.checkpoint)
    model = _create_timm(config, pretrained=from_folder or config.pretrained)
    if trained:
        _check_own_head(config, model)
        _check_own_patches(config, model)
    return model


def _create_timm(config: ModelConfig, **arguments: Any) -> nn.Module:
    explicit = {"num_classes": config.num_classes, "in_chans": config.in_chans}
    explicit = {name: value for name, value in explicit.items() if value is not None}
    try:
        return timm.create_model(config.name, **{**config.model_args, **explicit, **arguments})
    except _TIMM_ERRORS as error:
        raise ModelError(f"cannot make model {config.name!r}: {_first_lines(error)}") from error


def _create_with_checkpoint(config: ModelConfig, uri: str) -> nn.Module:
    """Through timm's own loading, which knows how each family's published checkpoints are laid out."""
    with torch.device("meta"):
        outline = _create_timm(config, pretrained=False)
    weights = read_state_dict(uri, outline.state_dict().keys(), use_ema=config.use_ema)
    check_heads(uri, weights, outline)
    check_first_layer(f"checkpoint {uri!r}", weights, outline)
    overlay = {
        "state_dict": weights,
        "num_classes": outline.num_classes,
        "input_size": _input_size(outline, dict(outline.pretrained_cfg)),  # type: ignore[arg-type]
        "label_offset": 0,
        "custom_load": False,
    }
    try:
        model = _create_timm(config, pretrained=True, pretrained_cfg_overlay=overlay)
    except ModelError as error:
        reason = _first_lines(error.__cause__ or error)
        raise CheckpointError(f"checkpoint {uri!r} does not fit model {config.name!r}: {reason}") from error
    model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr]
    return model


def _check_own_head(config: ModelConfig, model: nn.Module) -> None:
    """timm gives a pretrained model a fresh random head when asked for another class count; a teacher needs its own."""
    own = model.pretrained_cfg.get("num_classes")  # type: ignore[union-attr]
    if own is not None and own != model.num_classes:
        raise ModelError(f"model {config.name!r} was trained for {own} classes, num_classes says {model.num_classes}")


def _check_own_patches(config: ModelConfig, model: nn.Module) -> None:
    """A teacher must read the patches and channels that it was trained on.

    Raises:
        CheckpointError: the config asks for others than the weights were trained with.
    """
    if config.in_chans is None and not config.model_args:
        return
    # Made as the weights' own config says.
    own = dataclasses.replace(config, in_chans=None, num_classes=None, model_args={}, mean=None, std=None)
    with torch.device("meta"):
        trained = _create_timm(own, pretrained=False)
    check_first_layer(f"model {config.name!r}", trained.state_dict(), model)


def _input_size(model: nn.Module, data_config: dict[str, Any]) -> tuple[int, int, int]:
    """Of the model as it was made; timm's config may still tell the size it was trained at."""
    channels, height, width = data_config["input_size"]
    made_with = timm.models.get_model_args(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or made_with.get("img_size")
    if size is not None:
        height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(getattr(model, "in_chans", None) or made_with.get("in_chans") or channels), int(height), int(width)


def _per_channel(name: str, given: list[float] | None, own: tuple[float, ...], channels: int) -> tuple[float, ...]:
    values = tuple(float(v) for v in (given if given is not None else own))
    if len(values) == channels:
        return values
    if given is None and channels == 1:
        # timm states three for a model that it made for one channel: gray is their mean.
        return (sum(values) / len(values),)
    raise ConfigError(f"{name} has {len(values)} values, the model reads {channels} channels: {list(values)}")


def _first_lines(error: BaseException) -> str:
    return describe_misfit(error) or one_line(error, most=400)
