"""Check what a program hands to the engine: the model of a teacher, and targets, seeds, images and jitter of a run."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.checks import describe_normalization_fault
from pipeline.errors import ConfigError, ModelError
from pipeline.vit.wrappers import wrapped_as

# `torch.Generator.manual_seed` takes any 64 bits, signed or not.
_SEEDS = range(-(2**63), 2**64)


def check_model(model: nn.Module) -> None:
    """Refuse a model whose weights cannot be read as a frozen teacher's.

    Raises:
        ModelError: it is wrapped in another module, or has weights that are not float32.
    """
    family = type(model).__name__
    if (inner := wrapped_as(model)) is not None:
        raise ModelError(f"{family} is a wrapper: give the model in it, `model.{inner}`")
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise ModelError(f"{family} has weights in {_kind(weight)} ({name}): convert it with `model.float()`")


def check_values(model: nn.Module) -> None:
    """Refuse a model on the meta device: its work can be counted, but no image can be made from it.

    Raises:
        ModelError: a weight has no values.
    """
    for name, weight in model.state_dict().items():
        if weight.is_meta:
            raise ModelError(f"{type(model).__name__} has no weights: its {name} is on the meta device")


def normalization(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation as floats, one per channel.

    Raises:
        ModelError: there is not one number per channel, or they cannot belong to pixels in [0, 1].
    """
    try:
        numbers = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    except (TypeError, ValueError) as error:
        raise ModelError(f"mean and std must be numbers, one per channel, not {mean!r:.80} and {std!r:.80}") from error
    if not len(numbers["mean"]) == len(numbers["std"]) == channels:
        raise ModelError(f"mean {numbers['mean']} and std {numbers['std']} do not fit {channels} channels")
    if fault := describe_normalization_fault(numbers):
        raise ModelError(fault)
    return numbers["mean"], numbers["std"]


def checked_targets(targets: Any, num_classes: int) -> Tensor:
    """Return a copy of the targets as int64 [B].

    Raises:
        ConfigError: there are none, they are no whole numbers in one dimension, or the teacher lacks a class.
    """
    if not isinstance(targets, Tensor) or targets.ndim != 1 or not len(targets) or not _is_whole(targets):
        raise ConfigError(f"targets must be classes, int64 [B], not {_shown(targets)}")
    # Copied, because tensors that were made in inference mode cannot be saved for a backward pass.
    classes = targets.to(torch.int64, copy=True)
    beyond = classes[(classes < 0) | (classes >= num_classes)]
    if len(beyond):
        raise ConfigError(f"target {int(beyond[0])} is no class of the teacher, which has {num_classes}")
    return classes


def checked_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """Return the seeds as Python integers.

    Raises:
        ConfigError: there is not one for each target, or one is not a whole number of 64 bits.
    """
    if len(seeds) != count:
        raise ConfigError(f"there must be one seed for each target, not {len(seeds)} for {count}")
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise ConfigError(f"seeds must be whole numbers, not {seeds!r:.80}") from error
    if beyond := [seed for seed in numbers if seed not in _SEEDS]:
        raise ConfigError(f"a seed must fit 64 bits, not {beyond[0]}")
    return numbers


def checked_images(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a copy of starting images as float32 in the order of their dimensions.

    Raises:
        ConfigError: the images have another shape, or are not floating-point: 8-bit pixels would not be normalized.
    """
    if not isinstance(images, Tensor) or list(images.shape) != list(shape) or not images.is_floating_point():
        raise ConfigError(f"init must be normalized images, float {list(shape)}, not {_shown(images)}")
    # In another memory order, such as channels last, the optimizer would round pixels differently.
    return images.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def checked_jitter(jitter: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a copy of the jitter as int64.

    Raises:
        ConfigError: it has another shape, holds no whole numbers, or a flip that is neither 0 nor 1.
    """
    if not isinstance(jitter, Tensor) or list(jitter.shape) != list(shape) or not _is_whole(jitter):
        raise ConfigError(f"jitter must be whole numbers {list(shape)}, not {_shown(jitter)}")
    flips = jitter[..., 2]
    if bool(((flips != 0) & (flips != 1)).any()):
        raise ConfigError("jitter must hold flips of 0 and 1 as the last of (dy, dx, flip)")
    return jitter.to(torch.int64, copy=True)


def _is_whole(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _kind(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _shown(value: Any) -> str:
    return f"{_kind(value)} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
