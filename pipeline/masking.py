"""Run any timm classifier on whole images, with stopped patches at the mean color. It saves no time."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.trial import device_and_dtype, try_out


class MaskedModel(nn.Module):
    """A model that reads whole images, with a grid of patches that can be masked.

    A patch is the area that one token of the model's last stage covers: 16 × 16 pixels for BEiT, 32 × 32 for Swin and
    for Hiera, where it is the mask unit. The classifier averages those tokens, so it cannot tell smaller areas apart;
    at the stride of Swin's embedding, 4 pixels, the surviving patches would be specks.

    Args:
        model: a timm classifier; it is put in evaluation mode.
        image_size: height and width in pixels.
        in_chans: channels of its images.

    Raises:
        ModelError: the model has no classifier or no such grid, or does not read images of that shape.
    """

    def __init__(self, model: nn.Module, *, image_size: tuple[int, int], in_chans: int) -> None:
        super().__init__()
        self.model: Any = model.eval()
        self.in_chans, self.image_size = in_chans, image_size[0]
        self.num_classes: int = getattr(model, "num_classes", 0)
        self.patch_size = patch_size(model, image_size)
        self.grid_size = self.image_size // self.patch_size
        self.num_patches = self.grid_size**2
        shape = (in_chans, self.image_size, self.image_size)
        like = device_and_dtype(model)
        try_out(self, type(model).__name__, image_shape=shape, num_classes=self.num_classes, like=like)

    def forward(self, images: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Return logits [B, classes] of normalized images [B, C, H, W], masked outside `keep_indices` int64 [B, K]."""
        return self.model(images if keep_indices is None else fill_stopped(images, keep_indices, self.grid_size))


def patch_size(model: Any, image_size: tuple[int, int]) -> int:
    """Return the side, in pixels, of the area that one token of the last stage covers.

    Raises:
        ModelError: the model has no classifier, or no grid of square patches.
    """
    family = type(model).__name__
    stages = getattr(model, "feature_info", None)
    if not getattr(model, "num_classes", 0):
        raise ModelError(f"{family} cannot be masked: it has no classifier head (num_classes is 0)")
    if not isinstance(stages, list) or not stages:
        raise ModelError(f"{family} cannot be masked: it does not state the stride of its last stage (feature_info)")
    stride = int(stages[-1]["reduction"])
    height, width = image_size
    if height != width:
        raise ModelError(f"{family} cannot be masked: its images are not square: {image_size}")
    if height % stride or height == stride:
        raise ModelError(f"{family} cannot be masked: patches of {stride} pixels form no grid in its {height} pixels")
    return stride


def fill_stopped(images: Tensor, keep_indices: Tensor, grid_size: int) -> Tensor:
    """Set every patch outside `keep_indices` [B, K] to the mean color, 0, in square normalized images [B, C, H, W]."""
    kept = torch.zeros(images.shape[0], grid_size**2, dtype=images.dtype, device=images.device)
    kept.scatter_(1, keep_indices, 1)
    side = images.shape[-1] // grid_size
    mask = kept.view(-1, 1, grid_size, grid_size)
    return images * mask.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
