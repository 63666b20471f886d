"""Try a model on two images: it must return one logit per class for each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, one_line

# Errors that models raise for images of a shape that they do not take.
SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)
# Probabilities sum to 1 up to rounding in every row; the logits of two different images do not.
_SUM_TOLERANCE = 1e-3


def try_out(
    read: Callable[[Tensor], Any],
    name: str,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    like: Tensor | None = None,
) -> None:
    """Run a model on a gray image and one of noise, so that an unsuitable one is refused before any work starts.

    Args:
        read: a module in evaluation mode, or a function, of images [B, C, H, W].
        name: of the model, for the message.
        image_shape: channels, height and width in pixels.
        num_classes: number of logits expected per image.
        like: a tensor with the dtype and device of `read`'s images; float32 on the CPU by default.

    Raises:
        ModelError: the model does not take such images, or its output is not logits [B, num_classes].
    """
    # A generator of its own, so that these draws do not advance the global one.
    noise = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
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
    """Return why the output for two images is not their logits; None if it is."""
    wanted = f"a classifier of {num_classes} classes returns [B, {num_classes}]"
    if not isinstance(output, Tensor):
        return f"outputs a {type(output).__name__}{_members(output)}, not one tensor of logits: {wanted}"
    if output.ndim != 2:
        shape = ", ".join(map(str, ["B", *output.shape[1:]]))
        kind = {3: " (a token sequence)", 4: " (a feature or segmentation map)"}.get(output.ndim, "")
        return f"outputs [{shape}]{kind}, which are not logits: {wanted}"
    if output.shape != (2, num_classes):
        return f"outputs {output.shape[1]} values per image: {wanted}"
    values = output.float()
    # Values that are not finite are not refused here: they are found and recorded shard by shard when they appear.
    if bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all()):
        return "outputs probabilities (each row sums to 1), not logits: leave its softmax out"
    return None


def _members(output: Any) -> str:
    if isinstance(output, dict):
        return f" with the keys {list(map(str, output))[:5]}"
    return f" of {len(output)}" if isinstance(output, list | tuple) else ""


def device_and_dtype(model: nn.Module) -> Tensor | None:
    """Return a parameter of the model, for `like`; None if it has none."""
    return next(model.parameters(), None)
