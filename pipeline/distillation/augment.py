"""Random changes of a batch of images, as functions of numbers drawn for each image from its own seed.

The seed is of the training, the epoch and the image, so that a restart shows the same views, and an image's own changes
do not depend on its batch or worker. Only its partners, of mixup and CutMix, are of the same batch.

Pixels are float32 [B, C, H, W], normalized unless said otherwise; strengths and factors are [B].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from pipeline.hashing import hash_number

# Names of the numbers that are drawn for each image. New names go to the end, so that the draws of the others stay.
_NAMES = (
    *("angle", "down", "right", "size", "flip", "blur", "brightness", "contrast", "saturation", "noise", "partner"),
    *("mixup", "mixup_share", "cutmix", "cutmix_area", "cutmix_row", "cutmix_column"),
)
# These are drawn last, so that adding them did not change the draws above.
_ERASED_NAMES = ("erase", "erase_gray", "erase_block", "erase_area", "erase_row", "erase_column")
# Largest part of an image that is erased, as a share of its patches.
_LARGEST_ERASED = 0.8
_SEED_BYTES = 7


@dataclass(frozen=True)
class Draws:
    """Random numbers of a batch.

    Attributes:
        values: numbers by name, uniform in [0, 1): float32 [B] each.
        patches: float32 [B, N], uniform in [0, 1), a number for each patch. They decide which patches of other images
            are added.
        erased: numbers like `patches`, which decide which patches are erased; [B, 0] if blocks are erased instead.
        seeds: seeds of each image's noise.
    """

    values: dict[str, Tensor]
    patches: Tensor
    erased: Tensor
    seeds: tuple[int, ...]

    def up_to(self, name: str, largest: float) -> Tensor:
        """Return numbers [B] that are uniform in [0, largest)."""
        return self.values[name] * largest

    def around(self, name: str, largest: float) -> Tensor:
        """Return numbers [B] that are uniform in [-largest, largest)."""
        return (2 * self.values[name] - 1) * largest

    def chosen(self, name: str, probability: float) -> Tensor:
        """Return bool [B], true with the given probability."""
        return self.values[name] < probability

    def take(self, rows: Tensor) -> "Draws":
        """Return the numbers of some images, int64 [b]."""
        values = {name: numbers[rows] for name, numbers in self.values.items()}
        seeds = tuple(self.seeds[row] for row in rows.tolist())
        return Draws(values, self.patches[rows], self.erased[rows], seeds)


def draw_augmentation(
    image_ids: Sequence[str], *, seed: int, epoch: int, num_patches: int, num_erased: int, device: torch.device
) -> Draws:
    """Draw the numbers of each image, on the CPU, so that they do not depend on the device."""
    names = [f"{seed} {epoch} {image_id}" for image_id in image_ids]
    generators = [torch.Generator().manual_seed(hash_number(name, _SEED_BYTES)) for name in names]
    values, patches = _draw_table(generators, _NAMES, num_patches, device)
    erased_values, erased = _draw_table(generators, _ERASED_NAMES, num_erased, device)
    # Seeds of their own, because the noise would otherwise begin with the numbers that were drawn above.
    seeds = tuple(hash_number(f"{name} noise", _SEED_BYTES) for name in names)
    return Draws(values | erased_values, patches, erased, seeds)


def _draw_table(
    generators: Sequence[torch.Generator], names: Sequence[str], num_patches: int, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw one number per name and image [B], and one per patch and image [B, num_patches]."""
    table = torch.stack([torch.rand(len(names) + num_patches, generator=generator) for generator in generators])
    table = table.to(device)
    return dict(zip(names, table.T, strict=False)), table[:, len(names) :]


def move(pixels: Tensor, *, angle: Tensor, down: Tensor, right: Tensor, size: Tensor) -> Tensor:
    """Rotate, shift and scale each image; what comes in from outside is its reflection.

    Args:
        angle: angle of each image, float32 [B], in degrees.
        down, right: shift of each image, float32 [B], as a share of its height or width.
        size: factor of each image's size, float32 [B].
    """
    height, width = pixels.shape[-2:]
    cosine, sine = torch.cos(torch.deg2rad(angle)) / size, torch.sin(torch.deg2rad(angle)) / size
    # Coordinates of an image run from -1 to 1 along either side, so those of an oblong one are stretched.
    rows = (
        torch.stack([cosine, sine * (height / width), torch.zeros_like(angle)], dim=1),
        torch.stack([-sine * (width / height), cosine, torch.zeros_like(angle)], dim=1),
    )
    theta = torch.stack(rows, dim=1)
    shift = torch.stack([-2 * right, -2 * down], dim=1).unsqueeze(2)
    theta[:, :, 2:] = theta[:, :, :2] @ shift
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def mirror(pixels: Tensor, flip: Tensor) -> Tensor:
    """Mirror the images where `flip`, bool [B], is true."""
    return torch.where(_spread(flip), transforms.horizontal_flip(pixels), pixels)


def blur(pixels: Tensor, sigma: Tensor, *, largest: float) -> Tensor:
    """Blur each image with a Gaussian of its own standard deviation, in pixels, none above `largest`.

    torchvision's blur takes one standard deviation for all images.
    """
    radius = math.ceil(3 * largest)
    offsets = torch.arange(-radius, radius + 1, device=pixels.device)
    kernels = torch.exp(-(offsets**2) / (2 * sigma.clamp(min=1e-3).unsqueeze(1) ** 2))
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    batch, channels, height, width = pixels.shape
    weight = kernels.repeat_interleave(channels, dim=0).unsqueeze(1)
    flat = pixels.reshape(1, batch * channels, height, width)
    flat = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(flat, weight.unsqueeze(2), groups=batch * channels)
    flat = F.conv2d(flat, weight.unsqueeze(3), groups=batch * channels)
    return flat.reshape(pixels.shape)


def recolor(pixels: Tensor, *, brightness: Tensor, contrast: Tensor, saturation: Tensor | None) -> Tensor:
    """Change the colors of pixels in [0, 1], which may leave that range.

    torchvision's functions take one factor for all images.

    Args:
        brightness: factor of the pixels, float32 [B].
        contrast: factor of the distance from the image's mean gray, float32 [B].
        saturation: factor of the distance from gray, float32 [B]; None for images that do not have three channels.
    """
    pixels = pixels * _spread(brightness)
    if saturation is not None:
        gray = transforms.rgb_to_grayscale(pixels)
        pixels = torch.lerp(gray, pixels, _spread(saturation))
    gray = transforms.rgb_to_grayscale(pixels) if pixels.shape[1] == 3 else pixels
    mean = gray.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, pixels, _spread(contrast))


def find_partners(draws: Tensor, groups: Tensor) -> Tensor:
    """Return the row of another image of the same group for each image, int64 [B]; its own if it is alone.

    It is the image with the next larger draw, around a circle, so each image is a partner once.
    """
    partners = torch.arange(len(draws), device=draws.device)
    for group in groups.unique():
        rows = (groups == group).nonzero().squeeze(1)
        ordered = rows[draws[rows].argsort()]
        partners[ordered] = ordered.roll(-1)
    return partners


def mixup(pixels: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Return weighted means with each image's partner, which has a `share` in [0, 1] (mixup, Zhang et al., 2018)."""
    return torch.lerp(pixels, pixels[partners], _spread(share))


def choose_blocks(area: Tensor, row: Tensor, column: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patches of a block of each image, bool [B, grid height × grid width] (CutMix, Yun et al., 2019).

    Args:
        area: size of the block as a share of the image, float32 [B], in [0, 1].
        row, column: place of the block, float32 [B]: 0 is the top or left end, 1 the other end.
        grid: number of patches in a column and in a row.
    """
    inside = []
    for length, place in zip(grid, (row, column), strict=True):
        side = (area.sqrt() * length).round()
        start = (place * (length - side + 1)).floor()
        positions = torch.arange(length, device=area.device)
        inside.append((positions >= start.unsqueeze(1)) & (positions < (start + side).unsqueeze(1)))
    return (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).flatten(1)


def choose_erased(draws: Draws, grid: tuple[int, int]) -> Tensor:
    """Return the patches to erase of each image, bool [B, grid height × grid width]: a block, or some anywhere."""
    values = draws.values
    area = values["erase_area"] * _LARGEST_ERASED
    blocks = choose_blocks(area, values["erase_row"], values["erase_column"], grid)
    if not draws.erased.shape[1]:
        return blocks
    return torch.where(draws.chosen("erase_block", 0.5).unsqueeze(1), blocks, draws.erased < area.unsqueeze(1))


def paste(pixels: Tensor, others: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace the patches that are true in `patches`, bool [B, N], by those of the others [B, C, H or 1, W or 1]."""
    mask = patches.float().reshape(-1, 1, *grid)
    mask = F.interpolate(mask, size=pixels.shape[-2:], mode="nearest").bool()
    return torch.where(mask, others, pixels)


def unite_kept(kept: Tensor, others: Sequence[Tensor], order: Tensor) -> Tensor:
    """Add patches that other images keep to those of each image, equally many for all, so that one pass reads them.

    Args:
        kept: bool [B, N], the patches that each image keeps, equally many for all images.
        others: the same for other images, one tensor for each set of partners.
        order: float32 [B, N], in [0, 1), which decides which patches are left out of unions that are
            larger than the smallest one.

    Returns:
        bool [B, N]; each image's own patches are among them.
    """
    union = kept.clone()
    for other in others:
        union |= other
    count = int(union.sum(dim=1).min())
    best = (order + union + kept).topk(count, dim=1).indices
    return torch.zeros_like(kept).scatter(1, best, True)


def _spread(values: Tensor) -> Tensor:
    """Give a value per image the shape [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)
