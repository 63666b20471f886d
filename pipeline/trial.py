"""Try a model on two images: it must return one logit per class for each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, one_line

# Errors that models raise for images of a shape that they do not take, or where their arguments left out a part that
# their forward pass needs: timm makes a ResNet of three stages, and looks for the fourth when it runs.
FORWARD_ERRORS = (RuntimeError, ValueError, AssertionError, LookupError, TypeError, AttributeError, ArithmeticError)
# Text for messages about a model for which `has_classifier` returns false.
NO_CLASSIFIER = "it has no classifier head (num_classes is 0, or an Identity is in its place)"
# Probabilities sum to 1 up to rounding in every row; the logits of two different images do not.
_SUM_TOLERANCE = 1e-3


def try_out(
    read: Callable[[Tensor], Any],
    name: str,
    *,
    image_shape: Sequence[int],
    num_classes: int | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """Run a model on a gray image and one of noise, so that an unsuitable one is refused before any work starts.

    Args:
        read: a module in evaluation mode, or a function, that reads images [B, C, H, W].
        name: name of the model, for the message.
        image_shape: channels, height and width in pixels.
        num_classes: number of logits that is expected per image; None for any number.
        like: a tensor with the dtype and device that the images should have; by default float32 on the CPU.

    Returns:
        Its logits of the two images, [2, classes].

    Raises:
        ModelError: the model does not take such images, or its output is not logits [B, num_classes].
    """
    try:
        with torch.no_grad():
            output = read(trial_images(image_shape, like))
    except FORWARD_ERRORS as error:
        raise ModelError(f"{name} cannot read images {list(image_shape)}: {one_line(error)}") from error
    problem = describe_output(output, num_classes)
    if problem is not None:
        raise ModelError(f"{name} {problem}")
    return output


def trial_images(image_shape: Sequence[int], like: Tensor | None = None) -> Tensor:
    """Return a gray image and one of noise, [2, *image_shape], with the dtype and device of `like`."""
    # A generator of its own, so that these draws do not advance the global one.
    noise = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    images = torch.cat([torch.zeros_like(noise), noise])
    return images if like is None else images.to(like)


def describe_output(output: Any, num_classes: int | None = None) -> str | None:
    """Return why the output for two images is not their logits; None if it is.

    Args:
        output: what the model returned for two images.
        num_classes: number of logits that is expected per image; None for any number.
    """
    wanted = f"a classifier of {num_classes} classes returns [B, {num_classes}]"
    wanted = "a classifier returns [B, classes]" if num_classes is None else wanted
    if not isinstance(output, Tensor):
        return f"outputs a {type(output).__name__}{_members(output)}, not one tensor of logits: {wanted}"
    if output.ndim != 2:
        shape = ", ".join(map(str, ["B", *output.shape[1:]]))
        kind = {3: " (a token sequence)", 4: " (a feature or segmentation map)"}.get(output.ndim, "")
        return f"outputs [{shape}]{kind}, which are not logits: {wanted}"
    if output.shape != (2, output.shape[1] if num_classes is None else num_classes):
        return f"outputs {output.shape[1]} values per image: {wanted}"
    if output.is_meta:
        return None
    values = output.float()
    # Values that are not finite are not refused here: they are found and recorded shard by shard when they appear.
    if bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all()):
        return "outputs probabilities (each row sums to 1), not logits: leave its softmax out"
    return None


def has_classifier(model: Any) -> bool:
    """Return whether a timm model has a classifier.

    Its layer says so where it can be told: people put one of their own in its place, or none, and `num_classes` goes on
    to say what the model was made for.
    """
    layers = model.get_classifier() if hasattr(model, "get_classifier") else None
    found = [layer for layer in (layers if isinstance(layers, list | tuple) else [layers]) if layer is not None]
    if not found:
        return bool(getattr(model, "num_classes", 0))
    return not any(isinstance(layer, nn.Identity) for layer in found)


def _members(output: Any) -> str:
    if isinstance(output, dict):
        return f" with the keys {list(map(str, output))[:5]}"
    return f" of {len(output)}" if isinstance(output, list | tuple) else ""


def device_and_dtype(model: nn.Module) -> Tensor | None:
    """Return a parameter of the model, to be used as `like`; None if the model has none."""
    return next(model.parameters(), None)
