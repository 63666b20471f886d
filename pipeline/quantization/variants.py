"""Which quantized models a calibration makes, and what each of them is quantized with."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.mixed import Mixture, ranges_of_layers
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.refinement import Refinement


@dataclass(frozen=True)
class Variant:
    """A quantized model.

    Attributes:
        label: name of the model's files, without suffix.
        bits: bit widths of all layers, or the largest ones where layers differ.
        mixture: bit widths of each layer, where layers differ; otherwise None.
    """

    label: str
    bits: BitWidths
    mixture: Mixture | None = None

    @property
    def layers(self) -> dict[str, BitWidths] | None:
        """Bit widths of all layers, where they differ."""
        return None if self.mixture is None else self.mixture.layers

    @property
    def widths(self) -> list[BitWidths]:
        """Bit widths of the layers: of each where they differ, and else those of all."""
        return list(self.layers.values()) if self.layers else [self.bits]

    @property
    def can_saturate(self) -> bool:
        """Whether products of any layer can exceed 16 bits, see `BitWidths.can_saturate`."""
        return any(bits.can_saturate for bits in self.widths)


@dataclass(frozen=True)
class Values:
    """Ranges, parameters and scales that quantize a model, as `graphs.convert` takes them.

    Attributes:
        ranges: ranges of the activations, by point.
        parameters: values that replace the graph's own parameters, by name.
        scales: scales of weights, float32 [out], by the name of the weight; None to compute them from the graph's own
            weights.
    """

    ranges: Ranges
    parameters: Mapping[str, Tensor] | None = None
    scales: Mapping[str, Tensor] | None = None


def list_variants(config: CalibrationConfig, mixture: Mixture | None = None) -> list[Variant]:
    """Return the models of equal widths, and then the one whose widths were chosen layer by layer, if there is one."""
    equal = [Variant(bits.label, bits) for bits in config.settings]
    if mixture is None or config.mixed is None:
        return equal
    return [*equal, Variant("mixed", config.mixed.high, mixture)]


def calibrated_values(variant: Variant, ranges: Mapping[int, Ranges], refinement: Refinement | None = None) -> Values:
    """Return what calibration found to quantize a model with.

    Args:
        variant: the model.
        ranges: ranges of activations, for each of their bit widths.
        refinement: refined weights and biases; None if they are not refined.
    """
    layers = variant.layers
    used = ranges[variant.bits.activations] if layers is None else ranges_of_layers(ranges, layers)
    return Values(used, None if refinement is None else refinement.parameters(variant.bits, layers))
