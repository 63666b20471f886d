"""Recognize modules that wrap a model, as `torch.compile` and data-parallel training make them."""

from torch import nn

# Attributes in which wrappers keep the model: `torch.compile`, and DataParallel and its like.
_WRAPPED = ("_orig_mod", "module")


def wrapped_as(model: nn.Module) -> str | None:
    """Return the name of the attribute in which a wrapper keeps the model; None if it is no wrapper."""
    return next((name for name in _WRAPPED if isinstance(getattr(model, name, None), nn.Module)), None)
