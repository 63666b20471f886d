"""Run any timm classifier on whole images, with stopped patches at the mean color. It saves no time."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.trial import NO_CLASSIFIER, device_and_dtype, has_classifier, trial_images, try_out
from pipeline.vit.last_block import pad_rows


class MaskedModel(nn.Module):
    """A model that reads whole images, with a grid of patches that can be masked.

    A patch is the area that one token of the model's last stage covers: 16 × 16 pixels for BEiT, 32 × 32 for Swin and
    for Hiera, where it is the mask unit. The classifier averages those tokens, so it cannot tell smaller areas apart;
    at the stride of Swin's embedding, 4 pixels, the surviving patches would be specks. Where those areas do not tile
    the image, as LeViT's of 64 pixels in 224, it is one of the deepest stage whose areas do.

    Args:
        model: a timm classifier; it is put in evaluation mode.
        image_size: height and width in pixels.
        in_chans: number of channels of its images.

    Raises:
        ModelError: the model has no classifier or no such grid, or does not read images of that shape.
    """

    def __init__(self, model: nn.Module, *, image_size: tuple[int, int], in_chans: int) -> None:
        super().__init__()
        self.model: Any = model.eval()
        self.in_chans, self.image_size = in_chans, image_size[0]
        self.patch_size = patch_size(model, image_size)
        self.grid_size = self.image_size // self.patch_size
        self.num_patches = self.grid_size**2
        shape = (in_chans, self.image_size, self.image_size)
        like = device_and_dtype(model)
        own = try_out(model, type(model).__name__, image_shape=shape, like=like)
        # Counted on the output, because people replace the head alone, and `num_classes` stays what it was.
        self.num_classes: int = own.shape[1]
        self._reads_in_parts = _reads_in_parts(model, trial_images(shape, like), own)

    def forward(self, images: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Return logits [B, classes] of normalized images [B, C, H, W], masked outside `keep_indices` int64 [B, K]."""
        shown = images if keep_indices is None else fill_stopped(images, keep_indices, self.grid_size)
        return _read_in_parts(self.model, shown) if self._reads_in_parts else self.model(shown)


def _read_in_parts(model: Any, images: Tensor) -> Tensor:
    """Return the logits, with as many rows in the head as it takes to round alike in batches of any size."""
    return model.forward_head(pad_rows(model.forward_features(images)))[: len(images)]


def _reads_in_parts(model: Any, images: Tensor, own: Tensor) -> bool:
    """Return whether a model's features are one tensor, and its head gives its own logits [B, classes] of them."""
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        return False
    with torch.no_grad():
        features = model.forward_features(images)
        if not isinstance(features, Tensor) or len(features) != len(images) or own.is_meta:
            return False
        return torch.allclose(_read_in_parts(model, images), own, rtol=1e-3, atol=1e-3 * float(own.abs().max()))


def patch_size(model: Any, image_size: tuple[int, int]) -> int:
    """Return the side, in pixels, of the area that one token covers, of the deepest stage whose areas tile the image.

    Raises:
        ModelError: the model has no classifier, or no grid of square patches.
    """
    family = type(model).__name__
    if not has_classifier(model):
        raise ModelError(f"{family} cannot be masked: {NO_CLASSIFIER}")
    strides = _strides(model)
    if not strides:
        raise ModelError(f"{family} cannot be masked: it does not state the stride of its stages (feature_info)")
    height, width = image_size
    if height != width:
        raise ModelError(f"{family} cannot be masked: its images are not square: {image_size}")
    tiling = [stride for stride in strides if height % stride == 0 and height > stride]
    if not tiling:
        raise ModelError(f"{family} cannot be masked: patches of {strides} pixels form no grid in its {height} pixels")
    return tiling[-1]


def _strides(model: Any) -> list[int]:
    """Return the strides of a model's stages that are whole and square, ascending."""
    stages = getattr(model, "feature_info", None)
    stated = [stage.get("reduction") for stage in stages] if isinstance(stages, list) else []
    return sorted({int(stride) for stride in stated if isinstance(stride, int | float) and stride in range(1, 10**6)})


def fill_stopped(images: Tensor, keep_indices: Tensor, grid_size: int) -> Tensor:
    """Set every patch outside `keep_indices` [B, K] to the mean color, 0, in square normalized images [B, C, H, W]."""
    kept = torch.zeros(images.shape[0], grid_size**2, dtype=images.dtype, device=images.device)
    kept.scatter_(1, keep_indices, 1)
    side = images.shape[-1] // grid_size
    mask = kept.view(-1, 1, grid_size, grid_size)
    return images * mask.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
