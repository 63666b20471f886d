"""Round weights to the grid of their quantized counterparts: each to the nearest value, or together by GPTQ."""

import torch
from torch import Tensor

_BLOCK = 128
# Number that is added to the diagonal of a Hessian, as a share of the diagonal's mean.
_DAMPING = 0.01


def weight_limits(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest quantized weight."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def round_nearest(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return each weight's nearest value on the grid.

    Args:
        weight: float32 [out, ...].
        scales: float32 [out], scale of each output channel.
        bits: number of bits of the quantized weights.
    """
    zero_points = torch.zeros(len(scales), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zero_points, 0, *weight_limits(bits))


def round_gptq(weight: Tensor, scales: Tensor, bits: int, hessian: Tensor) -> Tensor:
    """Return weights on the grid that together change a layer's output little (GPTQ, Frantar et al., ICLR 2023).

    Columns are rounded one after another, in their order, and the error of each is compensated by the columns that are
    not rounded yet, as far as their inputs go together. All is computed in float64.

    Args:
        weight: float32 [out, ...], with `in` elements per output channel.
        scales: float32 [out], scale of each output channel.
        bits: number of bits of the quantized weights.
        hessian: [in, in], proportional to X^T X of the layer's inputs X.
    """
    factor = _inverse_factor(hessian.double())
    left, steps, limits = weight.flatten(1).double(), scales.double(), weight_limits(bits)
    levels = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = torch.empty(len(left), stop - start, dtype=torch.float64)
        for column in range(start, stop):
            levels[:, column] = (left[:, column] / steps).round().clamp(*limits)
            error = (left[:, column] - levels[:, column] * steps) / factor[column, column]
            left[:, column:stop] -= error[:, None] * factor[column, column:stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return (levels.float() * scales[:, None]).reshape(weight.shape)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of a damped Hessian."""
    mean = hessian.diagonal().mean()
    # A layer that only ever read zeros has nothing that goes together.
    relative = hessian / mean if mean > 0 else torch.zeros_like(hessian)
    damped = relative + _DAMPING * torch.eye(len(hessian), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
