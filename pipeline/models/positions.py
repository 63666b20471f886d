"""Detect position embeddings that timm resampled for another image size."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.models.weights import named_layers

# Names of absolute position embeddings in timm and DINOv2, OpenAI's CLIP, transformers, and Google's JAX code.
_ABSOLUTE = re.compile(r"(^|[./])(pos_embed|positional_embedding|position_embeddings?(\.weight)?|pos_?embedding)$")


def resampling(weights: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Describe what weights were trained on, if timm resampled them to fit a model.

    Args:
        weights: tensors as they were read from the file.
        model: the model that the weights were loaded into.

    Returns:
        An image size, or a tensor's shapes if no size follows from them; None if nothing was resampled. It cannot be
        found out for rotary positions and convolutions, which have no tensor of that size.
    """
    made, layers = model.state_dict(), _checked_elsewhere(model)
    embedding = made.get("pos_embed")
    for name, trained in weights.items():
        if name in layers:
            continue
        own = made.get(name)
        if _ABSOLUTE.search(name) and embedding is not None and trained.shape[-1] == embedding.shape[-1]:
            if not _same_grid(_num_tokens(trained), _num_tokens(embedding), model):
                return _pixels(_num_tokens(trained), model)
        elif own is not None and own.numel() != trained.numel():
            return f"another window or image size ({name} is {list(trained.shape)}, here {list(own.shape)})"
    return None


def _checked_elsewhere(model: nn.Module) -> set[str]:
    """Return the tensors of the first layer and the classifiers, whose shapes are checked elsewhere."""
    layers = [*named_layers(model, "first_conv"), *named_layers(model, "classifier")]
    return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def _num_tokens(embedding: Tensor) -> int:
    return embedding.numel() // embedding.shape[-1]


def _same_grid(trained: int, made: int, model: Any) -> bool:
    """Return whether two numbers of positions differ only by prefix tokens, which not all layouts count."""
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    return abs(trained - made) in {0, 1, prefix}


def _pixels(num_tokens: int, model: Any) -> str:
    """Return the image size to which a number of positions belongs."""
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    for extra in (prefix, 1, 0):
        side = math.isqrt(max(num_tokens - extra, 0))
        if side > 0 and side**2 == num_tokens - extra and patch is not None:
            return f"{side * patch[0]}x{side * patch[1]} pixels"
    return f"another image size ({num_tokens} positions)"
