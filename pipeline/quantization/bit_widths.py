"""Bit widths, placements and smoothings of quantization: what a config names, without torchao."""

from dataclasses import dataclass
from typing import Literal

from pipeline.checks import check_types
from pipeline.errors import ConfigError

# Below 2 bits a symmetric weight has no positive value left; above 16 no format stores integers to multiply.
MIN_BITS, MAX_BITS = 2, 16

Placement = Literal["linear", "matmul", "published"]
SmoothingName = Literal["none", "smooth_quant", "repq"]
RoundingName = Literal["nearest", "gptq"]


@dataclass(frozen=True, kw_only=True, order=True)
class BitWidths:
    """Bit widths of a quantized model, 2 to 16 each.

    Integers are stored in containers of 8 or 16 bits. Widths below 8 use fewer values of an 8-bit one: they show what
    the accuracy would be, and make the artifact neither smaller nor, on a CPU runtime, faster than 8 bits do. Above 8
    the runtimes have no integer kernels, and compute in float.

    Args:
        weights: bits per weight; symmetric, one scale per output channel.
        activations: bits per activation; asymmetric, one scale per tensor.
    """

    weights: int = 8
    activations: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        for name, bits in (("weights", self.weights), ("activations", self.activations)):
            if not MIN_BITS <= bits <= MAX_BITS:
                raise ConfigError(f"{name} must have {MIN_BITS} to {MAX_BITS} bits, not {bits}")

    @property
    def can_saturate(self) -> bool:
        """Whether two products of an unsigned activation and a signed weight can exceed 16 bits, as x86 adds them."""
        return 2 * (2**self.activations - 1) * 2 ** (self.weights - 1) > 2**15 - 1 and max(vars(self).values()) <= 8

    @property
    def fits_int4(self) -> bool:
        """Whether ONNX files can hold two weights per byte; beside wide activations, weights are stored in 16 bits."""
        return self.weights <= 4 and self.activations <= 8

    @property
    def label(self) -> str:
        """Short name of files and table rows, such as `w4a8`."""
        return f"w{self.weights}a{self.activations}"
