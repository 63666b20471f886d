"""Random draws from per-image seeds: starting noise, jitter, and noise of views."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.inversion.teacher import AnyTeacher


def start_images(teacher: AnyTeacher, seeds: Sequence[int]) -> Tensor:
    """Return the starting noise [B, C, H, W], N(0, 1) in normalized space, each image drawn from its own seed."""
    return draw_start(teacher, generators_of(seeds))


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one generator per image, on the CPU."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_start(teacher: AnyTeacher, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw `start_images`; each generator then goes on with the jitter of its image."""
    # Always drawn on the CPU, so that an image's start does not depend on the device.
    shape = (teacher.in_chans, teacher.image_size, teacher.image_size)
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(teacher.mean.device)


def draw_jitter(
    generators: Sequence[torch.Generator], steps: int, *, largest_shift: int, flip_probability: float
) -> Tensor:
    """Return random jitter for every step and image, int64 [steps, B, 3], each image drawn from its own generator.

    Args:
        generators: one per image, on the CPU.
        largest_shift: dy and dx are uniform in [-largest_shift, largest_shift].
        flip_probability: probability of a mirrored view.
    """
    tables = []
    for generator in generators:
        shifts = torch.randint(-largest_shift, largest_shift + 1, (steps, 2), generator=generator)
        flips = torch.rand(steps, 1, generator=generator) < flip_probability
        tables.append(torch.cat([shifts, flips.long()], dim=1))
    return torch.stack(tables, dim=1)


def draw_noise(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return N(0, 1) noise of the shape of the images, each image's from its own seed, drawn on their device."""
    generator = torch.Generator(images.device)
    shape, device = images.shape[1:], images.device
    return torch.stack([torch.randn(shape, generator=generator.manual_seed(s), device=device) for s in seeds])
