"""Convert images from one normalization to another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Renormalize(nn.Module):
    """Maps images [B, C, H, W] normalized for one model to those that another model reads.

    Args:
        mean, std: mean and standard deviation that the given images were normalized with, one number per channel, for
            pixels in [0, 1].
        to_mean, to_std: mean and standard deviation that the returned images are normalized with, likewise.

    Attributes:
        differs: whether the two normalizations differ; images are returned as they are otherwise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, *, mean: Sequence[float], std: Sequence[float], to_mean: Sequence[float], to_std: Sequence[float]
    ) -> None:
        super().__init__()
        given, own = (torch.tensor(v).view(2, -1, 1, 1) for v in ((mean, std), (to_mean, to_std)))
        self.register_buffer("scale", given[1] / own[1], persistent=False)
        self.register_buffer("shift", (given[0] - own[0]) / own[1], persistent=False)
        self.differs = (tuple(mean), tuple(std)) != (tuple(to_mean), tuple(to_std))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift if self.differs else images
