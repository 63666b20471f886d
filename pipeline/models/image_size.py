"""Find the image size of a model and that of its weights, and report that timm resampled one to the other."""

import dataclasses
from typing import Any

import timm.data
import timm.models
import torch
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.models.config import ModelConfig
from pipeline.models.timm_factory import as_trained, make_outline


def input_size_of(model: nn.Module, data_config: dict[str, Any]) -> tuple[int, int, int]:
    """Return channels, height and width that a model was made for; timm's config may state those of its training."""
    channels, height, width = data_config["input_size"]
    made_with = timm.models.get_model_args(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or made_with.get("img_size")
    if size is not None:
        height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(getattr(model, "in_chans", None) or made_with.get("in_chans") or channels), int(height), int(width)


def model_input_size(model: nn.Module) -> tuple[int, int, int]:
    """Return channels, height and width in pixels of the images that a timm model was made for."""
    return input_size_of(model, timm.data.resolve_data_config({}, model=model))


def size_notices(
    config: ModelConfig, what: str, model: nn.Module, change: str | None, trained: bool
) -> tuple[str, ...]:
    """Report that timm resampled weights of another image size; refuse it if nobody asked for that.

    Args:
        what: how the message names the source of the weights.
        change: the image size or shape that the weights were trained at; None if nothing was resampled.

    Raises:
        CheckpointError: weights of a trained model were resampled, and `model_args.img_size` is not set.
    """
    if change is None:
        return ()
    _, height, width = model_input_size(model)
    message = f"{what} was trained on {change}, the model reads {height}x{width} pixels"
    if trained and "img_size" not in config.model_args:
        raise CheckpointError(
            f"{message}: resampled, it would be another model; set model_args.img_size to the size it was trained on, "
            f"or to {height} to accept the resampling"
        )
    return (f"{message}: timm resampled it, so its outputs differ from those at the size it was trained on",)


def asked_size(config: ModelConfig, model: nn.Module) -> str | None:
    """Return the image size in the weights' own config if the given config asks for another; else None."""
    return _other_size(as_trained(config), model) if config.model_args else None


def unknown_size(config: ModelConfig, what: str, model: nn.Module) -> tuple[str, ...]:
    """Report that the image size of the weights is unknown (rotary positions, windows) if another one is asked for."""
    if "img_size" not in config.model_args:
        return ()
    others = {name: value for name, value in config.model_args.items() if name != "img_size"}
    named = make_outline(dataclasses.replace(config, model_args=others))
    size = _other_size(named, model)
    if size is None or _shapes(named) != _shapes(model):
        return ()
    _, height, width = model_input_size(model)
    message = f"{what} does not state the image size it was trained at: {config.name!r} is made for {size}"
    return (f"{message}, the model reads {height}x{width} as model_args.img_size says",)


def _other_size(trained: nn.Module, model: nn.Module) -> str | None:
    """Return the image size that a model was trained at if it reads another; None if it is the same."""
    (_, height, width), (_, *made) = (model_input_size(each) for each in (trained, model))
    return None if [height, width] == made else f"{height}x{width} pixels"


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
