"""Random draws from per-image seeds: jitter, and noise of views."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one generator per image, on the CPU."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_jitter(
    generators: Sequence[torch.Generator], steps: int, *, largest_shift: int, flip_probability: float
) -> Tensor:
    """Return random jitter for every step and image, int64 [steps, B, 3], each image drawn from its own generator.

    Args:
        generators: one per image, on the CPU.
        largest_shift: largest shift in pixels; dy and dx are uniform in [-largest_shift, largest_shift].
        flip_probability: probability that an image is mirrored.
    """
    tables = []
    for generator in generators:
        shifts = torch.randint(-largest_shift, largest_shift + 1, (steps, 2), generator=generator)
        flips = torch.rand(steps, 1, generator=generator, dtype=torch.float32) < flip_probability
        tables.append(torch.cat([shifts, flips.long()], dim=1))
    return torch.stack(tables, dim=1)


def draw_noise(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return N(0, 1) noise of the shape of the images, each image's from its own seed, drawn on their device."""
    generator = torch.Generator(images.device)
    shape, device = images.shape[1:], images.device
    draw = partial(torch.randn, shape, dtype=torch.float32, device=device)
    return torch.stack([draw(generator=generator.manual_seed(s)) for s in seeds])
