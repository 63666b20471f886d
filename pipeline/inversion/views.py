"""Views: images rotated, scaled, blurred and noisy, by numbers that each image draws from its own seed.

What leaves one side of an image comes in at the other, as with the jitter. Forward and backward consist of gathers,
matrix products and sums, which are deterministic on CUDA too. The gradient of PyTorch's `grid_sample`, which would do
all at once, is not.

Images are float32 [B, C, H, W] with H = W, normalized. What a number stands for is in `ViewConfig`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.inversion.config import ViewConfig
from pipeline.inversion.draws import draw_noise

# Below this standard deviation a Gaussian has one weight of 1 and otherwise zeros.
_SHARPEST = 1e-3
_LARGEST_SEED = 2**62


@dataclass(frozen=True)
class ViewDraws:
    """Random numbers for the views of some images, at every step of a run or at a single one.

    Attributes:
        strengths: the largest change of each kind.
        numbers: numbers for angle, size, blur and noise, uniform in [-1, 1): float32 [steps, B, 4], or [B, 4] for one
            step.
        noise_seeds: seeds of the noise, int64 [steps, B], or [B] for one step, on the CPU.
        moves: whether images are rotated, scaled and blurred, and not only made noisy.
    """

    strengths: ViewConfig
    numbers: Tensor
    noise_seeds: Tensor
    moves: bool = True

    def at(self, step: int, *, moves: bool) -> "ViewDraws":
        """Return the numbers of one step."""
        return replace(self, numbers=self.numbers[step], noise_seeds=self.noise_seeds[step], moves=moves)

    def part(self, rows: slice) -> "ViewDraws":
        """Return the numbers of some images of a step."""
        return replace(self, numbers=self.numbers[rows], noise_seeds=self.noise_seeds[rows])

    def keep(self, rows: Tensor) -> "ViewDraws":
        """Return the numbers of the images at these rows of the batch, int64 [b], at every step."""
        return replace(self, numbers=self.numbers[:, rows], noise_seeds=self.noise_seeds[:, rows.cpu()])


def draw_views(
    generators: Sequence[torch.Generator], steps: int, strengths: ViewConfig, *, alike: bool, device: torch.device
) -> ViewDraws | None:
    """Draw the views of every step and image; None, and no numbers are drawn, if nothing is to be changed.

    Args:
        generators: one per image, on the CPU.
        steps: number of steps of the run.
        strengths: the largest change of each kind.
        alike: whether all images are rotated, scaled and blurred by the first image's numbers, and get noise of its
            strength.
        device: device of the images.
    """
    if not strengths.active:
        return None
    rand = partial(torch.rand, steps, 4, dtype=torch.float32)
    numbers = [rand(generator=g) * 2 - 1 for g in (generators[:1] if alike else generators)]
    seeds = [torch.randint(_LARGEST_SEED, (steps,), generator=g) for g in generators]
    table = torch.stack(numbers, dim=1).to(device).expand(-1, len(generators), -1)
    return ViewDraws(strengths, table, torch.stack(seeds, dim=1))


def show_view(images: Tensor, draws: ViewDraws) -> Tensor:
    """Return the images as a step shows them, before the jitter.

    Args:
        images: whole images; gradients flow back into them.
        draws: numbers of this step for these images. A kind of change whose strength is 0 leaves the images as they
            are.
    """
    strengths = draws.strengths
    angle, size, blur, noise = draws.numbers.unbind(dim=1)
    if draws.moves and strengths.degrees:
        images = rotate(images, angle * strengths.degrees)
    if draws.moves and (strengths.scale or strengths.blur):
        images = rescale(images, 1 + size * strengths.scale, blur.abs() * strengths.blur)
    if strengths.noise:
        deviation = noise.abs() * strengths.noise
        images = images + deviation.view(-1, 1, 1, 1) * draw_noise(images, draws.noise_seeds.tolist())
    return images


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate each image about its center, counterclockwise, by three shears (Paeth, Graphics Interface 1986).

    Args:
        images: float32 [B, C, H, W] with H = W.
        angle: float32 [B], in degrees, between -90 and 90.
    """
    side = images.shape[-1]
    radians = torch.deg2rad(angle).unsqueeze(1)
    from_center = torch.arange(side, dtype=torch.float32, device=images.device) - (side - 1) / 2
    along_rows, along_columns = -torch.tan(radians / 2) * from_center, torch.sin(radians) * from_center
    images = _Slide.apply(images, along_rows)
    images = _Slide.apply(images.transpose(2, 3), along_columns).transpose(2, 3)
    return _Slide.apply(images, along_rows)  # type: ignore[no-any-return]


def rescale(images: Tensor, size: Tensor, sigma: Tensor) -> Tensor:
    """Scale each image about its center, then blur it.

    Args:
        images: float32 [B, C, H, W] with H = W.
        size: factor of each image, float32 [B]; above 1 it enlarges what is shown.
        sigma: standard deviation of the Gaussian for each image, float32 [B], in pixels.
    """
    side = images.shape[-1]
    along = (_blurring(sigma, side) @ _scaling(size, side)).unsqueeze(1)
    return along @ images @ along.transpose(2, 3)


def _scaling(size: Tensor, side: int) -> Tensor:
    """Return the weights [B, side, side] of the old pixels of a line in its new ones, by linear interpolation."""
    places = torch.arange(side, dtype=torch.float32, device=size.device)
    center = (side - 1) / 2
    read = (places - center) / size.unsqueeze(1) + center
    return (1 - _around(read.unsqueeze(2) - places, side).abs()).clamp(min=0)


def _blurring(sigma: Tensor, side: int) -> Tensor:
    """Return the weights [B, side, side] of the sharp pixels of a line in its blurred ones."""
    places = torch.arange(side, device=sigma.device)
    distances = _around((places.unsqueeze(1) - places).float(), side)
    weights = torch.exp(-(distances**2) / (2 * sigma.clamp(min=_SHARPEST).view(-1, 1, 1) ** 2))
    return weights / weights.sum(dim=2, keepdim=True)


def _around(distances: Tensor, side: int) -> Tensor:
    """Return the shortest of equal distances on a line whose ends meet, in [-side / 2, side / 2)."""
    return (distances + side / 2) % side - side / 2


def _slide(images: Tensor, offsets: Tensor) -> Tensor:
    """Move the rows of images [B, C, H, W] to the left, each by its own offset [B, H] in pixels, around the ends."""
    width = images.shape[-1]
    whole = offsets.floor()
    columns = (torch.arange(width, device=images.device) + whole.long().unsqueeze(2)) % width
    near = images.gather(3, columns.unsqueeze(1).expand(images.shape))
    far = images.gather(3, ((columns + 1) % width).unsqueeze(1).expand(images.shape))
    return torch.lerp(near, far, (offsets - whole).unsqueeze(1).unsqueeze(3))


class _Slide(torch.autograd.Function):
    """Linear interpolation along rows, whose gradient is the same in the other direction.

    Autograd would scatter-add instead, see `patches._CutPatches`.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        return _slide(images, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        return _slide(gradients[0], -offsets), None
