"""Learning rate and optimizer."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from pipeline.distillation.config import DistillationConfig


def lr_factor(progress: float, *, warmup: float, shape: str) -> float:
    """Return the learning rate at a point of the training, as a factor of the peak learning rate.

    In a distillation it depends on the share of images that are done, not on the number of steps, which differs between
    workers that read different numbers of images.

    Args:
        progress: share of the training that is done, in [0, 1]: of all images of all epochs in a distillation, and of
            all steps with `qat`.
        warmup: share of the training over which the factor rises linearly from 0 to 1.
        shape: `constant`, or `cosine` from 1 down to 0 after the warm-up.
    """
    if progress < warmup:
        return progress / warmup
    if shape == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / max(1 - warmup, 1e-12))))


def make_optimizer(parameters: Iterable[nn.Parameter], config: DistillationConfig) -> torch.optim.Optimizer:
    """Return AdamW, or SGD with momentum, at the peak learning rate."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
