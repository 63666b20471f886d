"""Load weights in the layout of Google's JAX code, as it publishes its ViTs."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.models.config import ModelConfig
from pipeline.models.timm_factory import TIMM_ERRORS, create_model, misfit, reason_of
from pipeline.models.weights import check_first_layer

# Positions may be resampled; the layer before the classifier is refused where it matters (`check_representation`).
_LEFT_OUT = re.compile(r"pos_embed|(^|/)pre_logits/")


def jax_first_layer(weights: Mapping[str, Tensor]) -> Tensor | None:
    """Return the patch embedding [D, C, height, width] of weights in Google's JAX layout; None if there is none."""
    for name, value in weights.items():
        if re.search(r"(^|/)embedding/kernel$", name) and value.ndim == 4:
            return value.permute(3, 2, 0, 1)
    return None


def check_jax_head(uri: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check the heads of weights in Google's JAX layout: timm's reader skips a classifier with other classes.

    Raises:
        CheckpointError: the number of classes differs; the message gives the number to set.
    """
    biases = [value for name, value in weights.items() if re.search(r"(^|/)head/bias$", name)]
    if not biases:
        raise CheckpointError(f"checkpoint {uri!r} has no classifier (head/bias)")
    if biases[0].shape[-1] != model.num_classes:
        raise CheckpointError(
            f"checkpoint {uri!r} has {biases[0].shape[-1]} classes, the model has {model.num_classes}: "
            f"set num_classes to {biases[0].shape[-1]}"
        )


def _check_extent(uri: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that the model reads all that was trained: timm's reader takes the first blocks of a deeper one.

    Raises:
        CheckpointError: the weights have other numbers of values than the model, positions apart.
    """
    prefix = next(name for name in weights if name.endswith("embedding/kernel")).removesuffix("embedding/kernel")
    own = [value for name, value in weights.items() if name.startswith(prefix) and not _LEFT_OUT.search(name)]
    given, wanted = (sum(value.numel() for value in values) for values in (own, _without_positions(model)))
    if given > wanted:
        raise CheckpointError(
            f"checkpoint {uri!r} has {given} values, the model reads {wanted}: it is of another model"
        )


def _without_positions(model: nn.Module) -> list[Tensor]:
    return [value for name, value in model.named_parameters() if "pos_embed" not in name]


def load_jax_weights(config: ModelConfig, uri: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """Make a model and load weights through the family's reader of Google's published `.npz` files.

    It takes a file, and silently skips tensors that it does not find, the classifier among others. The model is filled
    with NaN before, so that skipped tensors are found and refused.

    Raises:
        CheckpointError: timm does not read that layout for the family, or the weights do not fit.
    """
    model: Any = create_model(config, pretrained=False)
    if not hasattr(model, "load_pretrained"):
        family = type(model).__name__
        raise CheckpointError(f"checkpoint {uri!r} has the layout of JAX, which timm does not read for {family}")
    check_jax_head(uri, weights, model)
    _check_extent(uri, weights, model)
    first = {f"{layer}.weight": jax_first_layer(weights) for layer in (model.pretrained_cfg["first_conv"],)}
    check_first_layer(f"checkpoint {uri!r}", {k: v for k, v in first.items() if v is not None}, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with tempfile.TemporaryDirectory(prefix="jax-") as folder:
        path = Path(folder, "weights.npz")
        np.savez(path, **{name: value.float().numpy() for name, value in weights.items()})  # pyright: ignore[reportArgumentType]
        try:
            model.load_pretrained(str(path))
        except TIMM_ERRORS as error:
            raise misfit(config, uri, reason_of(error)) from error
    lacking = [name for name, value in model.named_parameters() if bool(value.isnan().any())]
    if lacking:
        raise CheckpointError(f"checkpoint {uri!r} lacks {len(lacking)} tensors of the model, as {lacking[0]!r}")
    return model
