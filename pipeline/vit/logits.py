"""Check what a model that is read by its patches returns: how many logits, and whether they are its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.errors import ModelError, one_line
from pipeline.trial import FORWARD_ERRORS, describe_output, device_and_dtype, trial_images, try_out

# As a share of the largest logit. GPU kernels that round to TF32 differ by a thousandth; another function by more.
_TOLERANCE = 0.01


def count_logits(model: Any) -> int:
    """Return how many logits a ViT's head returns, whatever `num_classes` says: people replace the head alone.

    Raises:
        ModelError: the head cannot read the model's tokens, or returns something other than logits [B, classes].
    """
    like = device_and_dtype(model)
    tokens = torch.zeros(2, model.num_prefix_tokens + 1, model.embed_dim)
    family = type(model).__name__
    try:
        with _evaluating(model), torch.no_grad():
            output = model.forward_head(tokens if like is None else tokens.to(like))
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the head of {family} cannot read its tokens of {model.embed_dim}: {one_line(error)}"
        ) from error
    if problem := describe_output(output):
        raise ModelError(f"{family} {problem}")
    return output.shape[1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside the context, so that no statistics are updated."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_logits(vit: Any) -> None:
    """Check that reading a model by its patches gives its own logits, of two classes or more.

    A subclass, a hook or a method put into the model may compute more than the parts that are read here. Values that
    are not finite pass: they are found when they appear, and recorded shard by shard.

    Args:
        vit: a `SubsetViT` in evaluation mode.

    Raises:
        ModelError: the logits differ, the model does not take its images, or it has a single logit.
    """
    family, like = type(vit.model).__name__, device_and_dtype(vit.model)
    shape = (vit.in_chans, vit.image_size, vit.image_size)
    if vit.num_classes == 1:
        raise ModelError(f"{family} has one logit: a softmax over one class is always 1, and says nothing")
    own = try_out(vit.model, family, image_shape=shape, num_classes=vit.num_classes, like=like)
    try:
        with torch.no_grad():
            logits = vit.read_by_patches(trial_images(shape, like))
    except FORWARD_ERRORS as error:
        raise ModelError(f"{family} cannot be run on a token subset: {one_line(error)}") from error
    if not own.is_meta and bool((logits - own).abs().max() > _TOLERANCE * own.abs().max()):
        raise ModelError(
            f"{family} cannot be run on a token subset: its own forward returns other logits than its blocks and head "
            "do, as with a hook or a method of its own"
        )
