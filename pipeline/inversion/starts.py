"""Where an inversion starts: noise, or dead leaves, each image from its own seed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.inversion.basis import CosineBasis
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.draws import generators_of
from pipeline.inversion.teacher import AnyTeacher

# Radii of the leaves lie between these shares of the image's side; their density falls with the square of the radius.
_SMALLEST, _LARGEST = 0.047, 0.6
# Standard deviations: of the leaves' brightness, of each channel's deviation from it, of the shading across a leaf as
# large as the image, and of the grain.
_BRIGHTNESS, _COLOR, _SHADING, _GRAIN = 1.0, 0.4, 1.0, 0.2
_NUM_LEAVES = 60


def start_images(teacher: AnyTeacher, seeds: Sequence[int], config: InversionConfig | None = None) -> Tensor:
    """Return the starting images [B, C, H, W] in normalized space, each drawn from its own seed.

    Args:
        teacher: the teacher, which knows the shape and the device of the images.
        seeds: one seed per image.
        config: settings of the inversion; by default images start from N(0, 1).
    """
    return draw_start(teacher, generators_of(seeds), config or InversionConfig())


def draw_start(teacher: AnyTeacher, generators: Sequence[torch.Generator], config: InversionConfig) -> Tensor:
    """Draw `start_images`; each generator then goes on with the jitter of its image."""
    # Always drawn on the CPU, so that an image's start does not depend on the device.
    shape = (teacher.in_chans, teacher.image_size, teacher.image_size)
    if config.start == "dead_leaves":
        images = torch.stack([draw_leaves(shape, generator) for generator in generators])
    else:
        images = torch.stack([_noise(shape, generator) for generator in generators])
        if config.basis == "cosine":
            images = CosineBasis(*shape[:2], falloff=config.falloff, device=images.device).render(images)
    return (images * config.start_std).to(teacher.mean.device)


def draw_leaves(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Draw an image [C, H, W] of ellipses and boxes that cover each other, shaded and of random colors.

    The dead leaves model of photographs (Lee, Mumford & Huang, Int. J. Computer Vision 2001): edges, surfaces and
    occlusion at all sizes. Networks learn from such images (Baradad et al., NeurIPS 2021).
    """
    channels, size, _ = shape
    image = torch.zeros(shape, dtype=torch.float32)
    rows = torch.arange(size, dtype=torch.float32).view(-1, 1).expand(size, size) / size
    columns = rows.T
    for _ in range(_NUM_LEAVES):
        draws = torch.rand(6, generator=generator, dtype=torch.float32).tolist()
        color = _BRIGHTNESS * _noise((1,), generator) + _COLOR * _noise((channels,), generator)
        shading = _SHADING * _noise((2,), generator)
        radius = _SMALLEST / (_SMALLEST / _LARGEST + draws[0] * (1 - _SMALLEST / _LARGEST))
        down, right = rows - (1.25 * draws[1] - 0.125), columns - (1.25 * draws[2] - 0.125)
        angle, flatness = math.pi * draws[3], 0.4 + 0.6 * draws[4]
        along = (right * math.cos(angle) + down * math.sin(angle)) / radius
        across = (down * math.cos(angle) - right * math.sin(angle)) / (radius * flatness)
        covered = along.square() + across.square() < 1 if draws[5] < 0.6 else (along.abs() < 1) & (across.abs() < 1)
        shade = radius * (shading[0] * along + shading[1] * flatness * across)
        image = torch.where(covered, color.view(-1, 1, 1) + shade, image)
    return image + _GRAIN * _noise(shape, generator)


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    # The same numbers whatever `torch.set_default_dtype` says.
    return torch.randn(shape, generator=generator, dtype=torch.float32)
