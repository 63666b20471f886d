"""Plant outlier channels into a ViT: the same function, as hard to quantize as ViTs trained on ImageNet."""

import copy

import torch
from torch import nn

from pipeline.quantization.channels import find_norm_readers
from pipeline.quantization.graphs import export_images
from pipeline.quantization.smoothing import ChannelRescaling, move_scales

FACTORS = (20.0, 12.0, 8.0)


def plant_outliers(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return a copy with three random channels of every LayerNorm multiplied by `FACTORS`.

    The columns of the linear layers that read them are divided by the same, so the function stays, up to rounding.

    Raises:
        ValueError: no linear layer alone reads a LayerNorm.
    """
    generator = torch.Generator().manual_seed(seed)
    planted = copy.deepcopy(model)
    pairs = find_norm_readers(export_images(model, "linear").module().graph)
    if not pairs:
        raise ValueError("the model has no LayerNorm whose output linear layers alone read")
    for pair in pairs:
        width = model.get_parameter(pair.norm.weight).numel()
        scale = torch.ones(width, dtype=torch.float64)
        scale[torch.randperm(width, generator=generator)[: len(FACTORS)]] = 1 / torch.tensor(FACTORS).double()
        move_scales(planted, pair, ChannelRescaling(scale, torch.zeros_like(scale)))
    return planted
