"""The frozen teacher: logits and patch scores on kept patches, and its normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.vit import SubsetViT


class Teacher(SubsetViT):
    """A frozen ViT with the normalisation of its images.

    Pixels are float32 in normalised space, [B, C, H, W]: 0 is the mean colour, `low` to `high` what a stored image
    can hold.

    Args:
        model: a timm ViT; its weights are frozen and it is put in evaluation mode.
        mean, std: of pixels in [0, 1], one for each channel.

    Raises:
        ModelError: a family that cannot be run on a token subset, or a normalisation for other channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(model)
        if not len(mean) == len(std) == self.in_chans:
            raise ModelError(f"mean {list(mean)} and std {list(std)} do not fit {self.in_chans} channels")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def low(self) -> Tensor:
        """Black, in normalised space [C, 1, 1]."""
        return -self.mean / self.std

    @property
    def high(self) -> Tensor:
        """White, in normalised space [C, 1, 1]."""
        return (1 - self.mean) / self.std

    def to_uint8(self, images: Tensor) -> Tensor:
        """Normalised [B, C, H, W] to the 8-bit pixels [B, H, W, C] that are stored, rounded to the nearest."""
        pixels = (images * self.std + self.mean) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def from_uint8(self, pixels: Tensor) -> Tensor:
        """8-bit pixels [B, H, W, C] to normalised float32 [B, C, H, W]."""
        return (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std

    def fill_stopped(self, images: Tensor, keep_indices: Tensor) -> Tensor:
        """The images with every patch outside `keep_indices` [B, K] at the mean colour."""
        kept = torch.zeros(images.shape[0], self.num_patches, dtype=images.dtype, device=images.device)
        kept.scatter_(1, keep_indices, 1)
        mask = kept.view(-1, 1, self.grid_size, self.grid_size)
        mask = mask.repeat_interleave(self.patch_size, dim=2).repeat_interleave(self.patch_size, dim=3)
        return images * mask
