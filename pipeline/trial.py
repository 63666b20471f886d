"""Try a model out: one logit per class for each image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, one_line

# What a model raises for images of a shape that it does not take.
SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)
# Rows of probabilities sum to 1 up to rounding; logits of two different images do not.
_SUM_TOLERANCE = 1e-3


def try_out(
    read: Callable[[Tensor], Any],
    name: str,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    like: Tensor | None = None,
) -> None:
    """Read a gray image and one of noise, so that a model that cannot is refused before any work starts.

    Args:
        read: a module or a function in evaluation mode, for images [B, C, H, W].
        name: of the model, for the message.
        image_shape: channels, height and width in pixels.
        num_classes: how many logits each image must be answered with.
        like: a tensor of the dtype and on the device that `read` takes; float32 on the CPU by default.

    Raises:
        ModelError: the model does not take such images, or its output is not logits [B, num_classes].
    """
    # A generator of its own: what is drawn here must not move the seeds of what comes after.
    noise = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0))
    images = torch.cat([torch.zeros_like(noise), noise])
    try:
        with torch.no_grad():
            output = read(images if like is None else images.to(like))
    except SHAPE_ERRORS as error:
        raise ModelError(f"{name} cannot read images {list(image_shape)}: {one_line(error)}") from error
    problem = _problem(output, num_classes)
    if problem is not None:
        raise ModelError(f"{name} {problem}")


def _problem(output: Any, num_classes: int) -> str | None:
    """Why the output for two images is not their logits; None where it is."""
    wanted = f"a classifier of {num_classes} classes answers [B, {num_classes}]"
    if not isinstance(output, Tensor):
        return f"answers with a {type(output).__name__}{_members(output)}, not with one tensor of logits: {wanted}"
    if output.ndim != 2:
        shape = ", ".join(map(str, ["B", *output.shape[1:]]))
        kind = {3: " (a token sequence)", 4: " (a feature or segmentation map)"}.get(output.ndim, "")
        return f"answers with [{shape}]{kind}, which are not logits: {wanted}"
    if output.shape != (2, num_classes):
        return f"answers with {output.shape[1]} values for each image: {wanted}"
    values = output.float()
    # What is not finite is found, and recorded shard by shard, where it appears.
    if bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all()):
        return "answers with probabilities (each row sums to 1), not logits: leave its softmax out"
    return None


def _members(output: Any) -> str:
    if isinstance(output, dict):
        return f" with the keys {list(map(str, output))[:5]}"
    return f" of {len(output)}" if isinstance(output, list | tuple) else ""


def device_and_dtype(model: nn.Module) -> Tensor | None:
    """A parameter of the model, for `like`; None where it has none."""
    return next(model.parameters(), None)
