"""Run a model with any of its layers quantized at any bit widths, without converting it each time."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.graphs import observer_nodes, prepare
from pipeline.quantization.names import layer_of, layer_path
from pipeline.quantization.prepared import prepared_layers, tensor_of
from pipeline.quantization.quantizer import activation_spec, scales_of, weight_spec
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.refinement import Refinement
from pipeline.quantization.rounding import round_nearest


class Simulation:
    """A model that simulates quantization in chosen layers.

    The points are those of `graphs.convert`, and so are the scales; PyTorch's fake quantization rounds. A layer is a
    module with everything that is quantized in it, such as the weight and the input of a linear layer.

    Args:
        program: a graph from `graphs.export_images`; it is not changed.
        placement: what is quantized.
        ranges: ranges of the activations, for each of their bit widths.
        refinement: refined weights and biases. Without it, weights are rounded to the nearest value.
    """

    def __init__(
        self,
        program: ExportedProgram,
        placement: Placement,
        ranges: Mapping[int, Ranges],
        refinement: Refinement | None = None,
    ) -> None:
        self._graph = prepare(program, BitWidths(), placement)
        biases = {} if refinement is None else _watch_biases(self._graph, refinement)
        self._parts = _replace_observers(self._graph, ranges, refinement)
        for layer, bias in biases.items():
            self._parts[layer].append(bias)

    @property
    def num_weights(self) -> dict[str, int]:
        """Number of quantized weights of each layer, in the graph's order."""
        return {layer: sum(part.num_weights for part in parts) for layer, parts in self._parts.items()}

    def predict(self, images: Tensor, widths: Mapping[str, BitWidths], batch_size: int = 256) -> Tensor:
        """Return logits [B, classes] of normalized images, with these layers quantized, and all others in float."""
        for layer, parts in self._parts.items():
            for part in parts:
                part.widths = widths.get(layer)
        with torch.no_grad():
            return torch.cat([self._graph(part) for part in images.split(batch_size)])


class _Activations(nn.Module):
    """Round activations while `widths` are set; pass them on unchanged otherwise."""

    num_weights = 0

    def __init__(self, ranges: Mapping[int, tuple[float, float]]) -> None:
        super().__init__()
        self.widths: BitWidths | None = None
        self._ranges = ranges
        self._scales: dict[int, tuple[float, int]] = {}

    def forward(self, values: Tensor) -> Tensor:
        if self.widths is None:
            return values
        bits = self.widths.activations
        if bits not in self._scales:
            scale, zero_point = scales_of(activation_spec(bits), torch.tensor(self._ranges[bits]))
            self._scales[bits] = scale.item(), int(zero_point.item())
        return torch.fake_quantize_per_tensor_affine(values, *self._scales[bits], 0, 2**bits - 1)


class _Weights(nn.Module):
    """Round a weight while `widths` are set; pass it on unchanged otherwise."""

    def __init__(self, num_weights: int, refined: Callable[[int], Tensor | None]) -> None:
        super().__init__()
        self.widths: BitWidths | None = None
        self.num_weights = num_weights
        self._refined = refined
        self._rounded: dict[int, Tensor] = {}

    def forward(self, weight: Tensor) -> Tensor:
        if self.widths is None:
            return weight
        bits = self.widths.weights
        if bits not in self._rounded:
            refined = self._refined(bits)
            scales, _ = scales_of(weight_spec(bits), weight)
            self._rounded[bits] = round_nearest(weight, scales, bits) if refined is None else refined
        return self._rounded[bits]


class _Bias(nn.Module):
    """Correct a bias while `widths` are set; pass it on unchanged otherwise."""

    num_weights = 0

    def __init__(self, refined: Callable[[BitWidths], Tensor | None]) -> None:
        super().__init__()
        self.widths: BitWidths | None = None
        self._refined = cache(refined)

    def forward(self, bias: Tensor) -> Tensor:
        refined = None if self.widths is None else self._refined(self.widths)
        return bias if refined is None else refined


_Part = _Activations | _Weights | _Bias


def _watch_biases(graph: fx.GraphModule, refinement: Refinement) -> dict[str, _Bias]:
    """Put a module behind the bias of each layer that has one, and return them by layer."""
    biases: dict[str, _Bias] = {}
    for call in prepared_layers(graph):
        if call.bias is not None and call.layer not in biases:
            biases[call.layer] = _Bias(partial(refinement.bias, call.layer))
            name = f"corrected_{call.operator.name}"
            graph.add_submodule(name, biases[call.layer])
            with graph.graph.inserting_after(call.bias):
                corrected = graph.graph.call_module(name, (call.bias,))
            call.bias.replace_all_uses_with(corrected, delete_user_cb=lambda user, own=corrected: user is not own)
    graph.recompile()
    return biases


def _nearest(_: int) -> None:
    """Leave a weight to be rounded to nearest."""


def _replace_observers(
    graph: fx.GraphModule, ranges: Mapping[int, Ranges], refinement: Refinement | None
) -> dict[str, list[_Part]]:
    """Put rounding modules in the places of the observers of a prepared graph, and return them by layer."""
    layers: dict[str, list[_Part]] = {}
    for node, source, observer in observer_nodes(graph):
        if source.op == "get_attr":
            layer = layer_path(source)
            refined = _nearest if refinement is None else partial(refinement.weight, layer)
            part = _Weights(tensor_of(graph, str(source.target)).numel(), refined)
        else:
            layer = layer_of(observer.point)
            part = _Activations({bits: by_point[observer.point] for bits, by_point in ranges.items()})
        layers.setdefault(layer, []).append(part)
        graph.set_submodule(str(node.target), part)
    return layers
