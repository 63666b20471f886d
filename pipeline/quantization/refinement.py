"""Choose the values of weights and biases of a quantized model by what its layers read in calibration."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline.errors import first_few
from pipeline.log import logger
from pipeline.quantization.bit_widths import BitWidths, Placement, RoundingName
from pipeline.quantization.graphs import prepare
from pipeline.quantization.moments import Moments
from pipeline.quantization.prepared import PreparedLayer, point_of, prepared_layers, tensor_of
from pipeline.quantization.quantizer import scales_of, weight_spec
from pipeline.quantization.rounding import round_gptq, round_nearest


class Refinement:
    """Weights on the grid of their bit width, and biases that take up the mean error of a layer's output.

    Each layer is refined by itself, as if those before it were in float: so its values depend only on its own bit
    widths, and layers of different widths can be put together.

    - Weights by GPTQ, see `rounding.round_gptq`, with the scales that the nearest ones have.
    - Bias correction (Nagel et al., ICCV 2019, section 4.2): the mean of the layer's output over all that it read, with
      quantized weights and inputs less that in float, is subtracted from the bias.

    Args:
        program: a graph from `graphs.export_images`.
        placement: what is quantized.
        moments: sums over the inputs of its layers, by point.
        rounding: `nearest` or `gptq`.
        bias_correction: whether biases are corrected.
    """

    def __init__(
        self,
        program: ExportedProgram,
        placement: Placement,
        moments: Mapping[str, Moments],
        *,
        rounding: RoundingName,
        bias_correction: bool,
    ) -> None:
        self._rounding: RoundingName = rounding
        self._corrects = bias_correction
        self._graph = prepare(program, BitWidths(), placement)
        calls: dict[str, list[PreparedLayer]] = {}
        for call in prepared_layers(self._graph):
            calls.setdefault(call.layer, []).append(call)
        self._layers = {layer: own[0] for layer, own in calls.items() if own[0].groups == 1}
        self._moments = {
            layer: [moments[point_of(self._graph, call)] for call in calls[layer]] for layer in self._layers
        }
        self._report(calls)
        self._rounded: dict[tuple[str, int], Tensor] = {}

    def weight(self, layer: str, bits: int) -> Tensor | None:
        """Return the values of a layer's weight in so many bits, all on the grid; None if they are the nearest ones."""
        if self._rounding == "nearest" or layer not in self._layers:
            return None
        if (layer, bits) not in self._rounded:
            weight = self._parameter(layer, "weight")
            rounded = round_gptq(weight, _weight_scales(weight, bits), bits, self._hessian(layer))
            self._rounded[layer, bits] = rounded
        return self._rounded[layer, bits]

    def bias(self, layer: str, bits: BitWidths) -> Tensor | None:
        """Return a layer's corrected bias; None if it is not corrected."""
        if not self._corrects or layer not in self._layers or self._layers[layer].bias is None:
            return None
        weight, rounded = self._parameter(layer, "weight"), self.weight(layer, bits.weights)
        if rounded is None:
            rounded = round_nearest(weight, _weight_scales(weight, bits.weights), bits.weights)
        error = torch.zeros(len(weight), dtype=torch.float64)
        calls = self._moments[layer]
        for call in calls:
            share = call.count / sum(each.count for each in calls)
            error += share * (rounded.flatten(1).double() @ call.quantized_mean(bits.activations))
            error -= share * (weight.flatten(1).double() @ call.mean())
        return (self._parameter(layer, "bias").double() - error).float()

    def parameters(self, bits: BitWidths, layers: Mapping[str, BitWidths] | None = None) -> dict[str, Tensor]:
        """Return values that replace the graph's own weights and biases, as `graphs.convert` takes them.

        Args:
            bits: bit widths of all layers that have none of their own.
            layers: bit widths of single layers, by their paths; None for none.
        """
        found: dict[str, Tensor | None] = {}
        for name, call in self._layers.items():
            own = (layers or {}).get(name, bits)
            found[str(call.weight.target)] = self.weight(name, own.weights)
            if call.bias is not None:
                found[str(call.bias.target)] = self.bias(name, own)
        return {name: values for name, values in found.items() if values is not None}

    def _parameter(self, layer: str, kind: str) -> Tensor:
        return tensor_of(self._graph, str(getattr(self._layers[layer], kind).target)).detach().cpu()

    def _hessian(self, layer: str) -> Tensor:
        total = None
        for call in self._moments[layer]:
            assert call.products is not None, "products were not observed"
            products = torch.from_numpy(call.products).double() * call.step**2
            total = products if total is None else total + products
        assert total is not None
        return total

    def _report(self, calls: Mapping[str, Sequence[PreparedLayer]]) -> None:
        grouped = [layer for layer in calls if layer not in self._layers]
        if grouped:
            logger.info(f"note: grouped convolutions are rounded to nearest and not corrected: {_shown(grouped)}")
        biasless = [layer for layer, call in self._layers.items() if call.bias is None]
        if self._corrects and biasless:
            logger.info(f"note: bias correction leaves out layers without a bias of their own: {_shown(biasless)}")


def _weight_scales(weight: Tensor, bits: int) -> Tensor:
    return scales_of(weight_spec(bits), weight)[0]


def _shown(layers: Sequence[str]) -> str:
    return f"{len(layers)} ({first_few(layers)})"
