"""Choose which images of a batch are mixed, before any pixel is read.

Every worker makes the same choice for the whole batch. It then reads only its own images and those mixed into them, and
gets the same pixels as a single worker would.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distillation import augment


@dataclass(frozen=True)
class Combination:
    """Which other images of the batch each image is mixed with, and how much of them it takes.

    An image takes part of its partner and, on kept patches, of its partner's partner.

    Attributes:
        partners: row of each image's partner, int64 [B].
        share: of the partner in a weighted mean; 0 where there is none, float32 [B].
        blocks: patches of a whole image that its partner's replace, bool [B, N].
        first, second: patches that an image on kept patches gets from its partner, and from its partner's, bool [B, N].
        grid: height and width in patches.
    """

    partners: Tensor
    share: Tensor
    blocks: Tensor
    first: Tensor
    second: Tensor
    grid: tuple[int, int]

    def needed(self, own: Tensor) -> Tensor:
        """Return the rows, ascending, whose pixels decide those of some rows, int64."""
        mixed, pasted = self.share > 0, self.blocks.any(dim=1)
        one = mixed | pasted | self.first.any(dim=1)
        # What is pasted may be a mean itself.
        two = self.second.any(dim=1) | (pasted & mixed[self.partners])
        others = self.partners[own[one[own]]], self.partners[self.partners[own[two[own]]]]
        return torch.cat([own, *others]).unique()

    def apply(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Mix the given rows of the batch with each other, and return their pixels [b, C, H, W].

        Args:
            pixels: of the rows, [b, C, H, W].
            rows: what `needed` returned, int64 [b]. Rows that are only mixed into others, and whose own partners are
                missing, get meaningless pixels.
        """
        first, second = (_places(rows, of[rows]) for of in (self.partners, self.partners[self.partners]))
        if self.share.any():
            pixels = augment.mixup(pixels, first, self.share[rows])
        united = augment.paste(pixels, pixels[first], self.first[rows], self.grid)
        united = augment.paste(united, pixels[second], self.second[rows], self.grid)
        return augment.paste(united, united[first], self.blocks[rows], self.grid)


def _places(rows: Tensor, others: Tensor) -> Tensor:
    """Return where each of the others is among the rows, which ascend; its own place where it is not there."""
    places = torch.searchsorted(rows, others).clamp(max=len(rows) - 1)
    return torch.where(rows[places] == others, places, torch.arange(len(rows), device=rows.device))
