"""Patch geometry: which patches survive, how a jitter moves them, and where their pixels lie.

A jitter is three integers per image, [B, 3]: the image is rolled by (dy, dx) pixels, wrapping around, and then, where
flip is 1, mirrored left to right. Patches are numbered row by row; `keep_indices` is int64 [B, K], ascending.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def all_patches(batch: int, num_patches: int, device: torch.device | str = "cpu") -> Tensor:
    """`keep_indices` of whole images [B, N]."""
    return torch.arange(num_patches, device=device).expand(batch, -1).clone()


def split_best(keep_indices: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` patches of highest score [B, count] and the others [B, K - count], each ascending.

    Of equal scores the first patch counts as the higher.

    Args:
        keep_indices: int64 [B, K], the patches alive.
        scores: float [B, K], one score per patch, in the same order.
    """
    ranked = keep_indices.gather(1, torch.sort(scores, dim=1, descending=True, stable=True).indices)
    return ranked[:, :count].sort(dim=1).values, ranked[:, count:].sort(dim=1).values


def move_patches(keep_indices: Tensor, jitter: Tensor, *, grid_size: int, patch_size: int) -> Tensor:
    """Return the grid positions [B, K] of the surviving patches in the jittered image.

    A patch moves with the content of its image by the nearest whole number of patches: `floor(offset / patch + 0.5)`
    rows and columns, wrapping around, then mirrored where flipped.
    """
    dy, dx, flip = (column.unsqueeze(1) for column in jitter.unbind(dim=1))
    row = (keep_indices // grid_size + _nearest_patches(dy, patch_size)) % grid_size
    column = (keep_indices % grid_size + _nearest_patches(dx, patch_size)) % grid_size
    column = torch.where(flip.bool(), grid_size - 1 - column, column)
    return row * grid_size + column


def _nearest_patches(offset: Tensor, patch_size: int) -> Tensor:
    """floor(offset / patch + 1/2), in integers."""
    return torch.div(2 * offset + patch_size, 2 * patch_size, rounding_mode="floor")


def cut_patches(images: Tensor, positions: Tensor, jitter: Tensor, *, patch_size: int) -> Tensor:
    """Return the patches [B, K, C, p, p] that the jittered images show at `positions` [B, K].

    Equal to jittering the whole image and cutting it into patches, but reads only those pixels. No position may occur
    twice.
    """
    return _CutPatches.apply(images, positions, jitter, patch_size)  # type: ignore[no-any-return]


class _CutPatches(torch.autograd.Function):
    """A gather whose gradient is a gather too.

    Each pixel is read at most once, so its gradient is a single value. Autograd cannot know that and would scatter-add
    into a zeroed image, which is slow on a GPU with deterministic algorithms.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, positions: Tensor, jitter: Tensor, patch_size: int) -> Tensor:
        batch, channels, _height, width = images.shape
        ctx.save_for_backward(positions, jitter)
        ctx.shape, ctx.patch_size = images.shape, patch_size
        y, x = _source_pixels(positions, jitter, grid_size=width // patch_size, patch_size=patch_size)
        flat = (y.unsqueeze(-1) * width + x.unsqueeze(-2)).view(batch, 1, -1)
        patches = images.flatten(2).gather(2, flat.expand(-1, channels, -1))
        return patches.view(batch, channels, -1, patch_size, patch_size).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        positions, jitter = ctx.saved_tensors
        batch, channels, _height, width = ctx.shape
        flat = _patch_pixels(positions, jitter, grid_size=width // ctx.patch_size, patch_size=ctx.patch_size)
        shown = gradients[0].transpose(1, 2).reshape(batch, channels, -1)
        # Pixels that lie in no patch read the zero appended here.
        shown = F.pad(shown, (0, 1))
        return shown.gather(2, flat.unsqueeze(1).expand(-1, channels, -1)).view(ctx.shape), None, None, None


def jitter_images(images: Tensor, jitter: Tensor) -> Tensor:
    """Roll and mirror whole images [B, C, H, W], each by its own jitter [B, 3]."""
    size = images.shape[-1]
    whole = torch.zeros(images.shape[0], 1, dtype=torch.int64, device=images.device)
    return cut_patches(images, whole, jitter, patch_size=size).squeeze(1)


def _source_pixels(positions: Tensor, jitter: Tensor, *, grid_size: int, patch_size: int) -> tuple[Tensor, Tensor]:
    """Return the rows and columns [B, K, p] of the un-jittered image that land in the patches at `positions`."""
    size = grid_size * patch_size
    dy, dx, flip = (column.view(-1, 1, 1) for column in jitter.unbind(dim=1))
    inside = torch.arange(patch_size, device=positions.device)
    y = (positions // grid_size).unsqueeze(-1) * patch_size + inside
    x = (positions % grid_size).unsqueeze(-1) * patch_size + inside
    x = torch.where(flip.bool(), size - 1 - x, x)
    return (y - dy) % size, (x - dx) % size


def _patch_pixels(positions: Tensor, jitter: Tensor, *, grid_size: int, patch_size: int) -> Tensor:
    """Return the index of each pixel of the un-jittered image [B, H·W] among those of its patches; K·p² if in none.

    The inverse of `_source_pixels`.
    """
    batch, count = positions.shape
    size, area = grid_size * patch_size, patch_size**2
    dy, dx, flip = (column.unsqueeze(1) for column in jitter.unbind(dim=1))
    side = torch.arange(size, device=positions.device)
    y, x = (side + dy) % size, (side + dx) % size
    x = torch.where(flip.bool(), size - 1 - x, x)
    slots = positions.new_full((batch, grid_size**2), count)
    slots.scatter_(1, positions, torch.arange(count, device=positions.device).expand(batch, -1))
    patch = (y // patch_size * grid_size).unsqueeze(2) + (x // patch_size).unsqueeze(1)
    inside = (y % patch_size * patch_size).unsqueeze(2) + (x % patch_size).unsqueeze(1)
    slot = slots.gather(1, patch.flatten(1))
    return torch.where(slot < count, slot * area + inside.flatten(1), count * area)
