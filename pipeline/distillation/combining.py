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
        partners: int64 [B], row of each image's partner.
        share: float32 [B], weight of the partner in the mean; 0 for an image that is not averaged.
        blocks: bool [B, N], patches of a whole image that are replaced by its partner's.
        first, second: bool [B, N], patches that an image on kept patches gets from its partner, and from its partner's
            partner.
        grid: number of patches in a column and in a row.
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
        # A block may be pasted from an image that is itself a mean with its partner.
        two = self.second.any(dim=1) | (pasted & mixed[self.partners])
        others = self.partners[own[one[own]]], self.partners[self.partners[own[two[own]]]]
        return torch.cat([own, *others]).unique()

    def apply(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Mix the given rows of the batch with each other, and return their pixels [b, C, H, W].

        Args:
            pixels: float32 [b, C, H, W], pixels of the rows.
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
    """Return the place of each of the others among the ascending rows; an absent one gets its own image's place."""
    places = torch.searchsorted(rows, others).clamp(max=len(rows) - 1)
    return torch.where(rows[places] == others, places, torch.arange(len(rows), device=rows.device))
