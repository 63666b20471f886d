"""Move the scales of channels from activations into weights, so that a few large channels do not decide the range.

Trained ViTs have channels after LayerNorm that are many times larger than the others. With one scale per tensor, the
others are then rounded to a few values. A factor of each channel can be taken out of LayerNorm's weight and bias and
put into the columns of the linear layers that read it: the same function, which any runtime runs as it is.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.quantization.bit_widths import SmoothingName
from pipeline.quantization.channels import ChannelRanges, NormReaders

ALPHA = 0.5


@dataclass(frozen=True)
class ChannelRescaling:
    """Shift and scale to take out of each channel of a normalization's output, float64 [D]: (x - shift) / scale."""

    scale: Tensor
    shift: Tensor


def smooth_quant(low: Tensor, high: Tensor, weights: Sequence[Tensor], alpha: float = ALPHA) -> ChannelRescaling:
    """Divide each channel between activations and weights (SmoothQuant, Xiao et al., ICML 2023, equation 4).

    The scale is max|x|^alpha / max|w|^(1 - alpha). A channel that is always zero, or that no weight reads, stays.

    Args:
        low, high: smallest and largest value of each channel, [D].
        weights: weights of the linear layers that read the channels, [out, D] each; they share one scale.
        alpha: share of the difficulty that goes into the weights, from 0 to 1.
    """
    values = torch.maximum(low.abs(), high.abs()).double()
    columns = torch.cat([weight.double() for weight in weights]).abs().amax(dim=0)
    scale = values**alpha / columns ** (1 - alpha)
    return ChannelRescaling(torch.where((values > 0) & (columns > 0), scale, 1.0), torch.zeros_like(scale))


def repq(low: Tensor, high: Tensor) -> ChannelRescaling:
    """Give every channel the same range (RepQ-ViT, Li et al., ICCV 2023, section 3.2).

    The scale is the channel's range over the mean range, and the shift makes the ranges' ends meet at the mean zero
    point. A channel that is constant stays.

    Args:
        low, high: smallest and largest value of each channel, [D].
    """
    low, high = low.double(), high.double()
    spans = high - low
    varies = spans > 0
    if not varies.any():
        return ChannelRescaling(torch.ones_like(spans), torch.zeros_like(spans))
    mean = spans[varies].mean()
    scale = torch.where(varies, spans / mean, 1.0)
    end = mean * (low[varies] / spans[varies]).mean()
    return ChannelRescaling(scale, torch.where(varies, low - scale * end, 0.0))


def smooth(
    model: nn.Module, readers: Sequence[NormReaders], ranges: ChannelRanges, name: SmoothingName, alpha: float = ALPHA
) -> nn.Module:
    """Return a copy of a model that computes the same function with smoother activations.

    Args:
        model: the model, which is not changed.
        readers: the normalizations with their readers, from `find_norm_readers` or a `ChannelObserver`.
        ranges: ranges of the channels of each of these normalizations.
        name: `smooth_quant` or `repq`.
        alpha: share of the difficulty that SmoothQuant moves into the weights.

    Raises:
        ModelError: no linear layer reads a normalization alone.
    """
    if not readers:
        raise ModelError(
            f"smoothing {name} needs a normalization whose output only linear layers read; the model has none"
        )
    smoothed = copy.deepcopy(model)
    for pair in readers:
        low, high = map(torch.from_numpy, ranges[pair.norm.weight])
        weights = [model.get_parameter(linear.weight).detach().cpu() for linear in pair.linears]
        change = repq(low, high) if name == "repq" else smooth_quant(low, high, weights, alpha)
        move_scales(smoothed, pair, change)
    return smoothed


@torch.no_grad()
def move_scales(model: nn.Module, pair: NormReaders, change: ChannelRescaling) -> None:
    """Move a shift and a scale from a normalization into its readers, in place; the function stays the same.

    A shift stays out if there is a bias missing that could take it up.
    """
    shift = change.shift
    if pair.norm.bias is None or any(linear.bias is None for linear in pair.linears):
        shift = torch.zeros_like(shift)
    _set(model, pair.norm.weight, _get(model, pair.norm.weight) / change.scale)
    if pair.norm.bias is not None:
        _set(model, pair.norm.bias, (_get(model, pair.norm.bias) - shift) / change.scale)
    for linear in pair.linears:
        weight = _get(model, linear.weight)
        if linear.bias is not None:
            _set(model, linear.bias, _get(model, linear.bias) + weight @ shift)
        _set(model, linear.weight, weight * change.scale)


def _get(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).detach().cpu().double()


def _set(model: nn.Module, name: str, values: Tensor) -> None:
    model.get_parameter(name).copy_(values)
