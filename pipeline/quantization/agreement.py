"""Compare an artifact's logits with those of the calibrated graph."""

from torch import Tensor

# Largest error as a multiple of that of quantization. Two independent roundings of the same size are √2 times that size
# apart. A runtime that rounds in another order differs from the quantized graph by about as much as that graph differs
# from the float model.
_OF_QUANTIZATION = 1.5
# Relative error. Even if quantization changes almost nothing, kernels still sum their products in another order.
_LEAST = 5e-3


def relative_error(logits: Tensor, expected: Tensor) -> float:
    """Return the distance of logits [B, classes] from the expected ones, relative to the norm of the latter."""
    return float((logits - expected).norm() / expected.norm().clamp(min=1e-12))


def largest_deviation(quantized: Tensor, floating: Tensor) -> float:
    """Return the largest relative error that a file may have against the quantized graph.

    Args:
        quantized, floating: logits [B, classes] of the quantized graph and of the float model, for the same images.
    """
    return max(_LEAST, _OF_QUANTIZATION * relative_error(quantized, floating))
