"""Run a model with any of its layers quantized at any bit widths, without converting it each time."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e.observer import ObserverBase
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.graphs import prepare
from pipeline.quantization.quantizer import activation_spec, layer_of, layer_path, weight_spec
from pipeline.quantization.ranges import Ranges


class Simulation:
    """A graph that rounds, in the layers that it is told to, where its quantized counterpart would.

    The points are those of `graphs.convert`, and so are the scales; PyTorch's fake quantization rounds. A layer is a
    module with everything that is quantized in it, such as the weight and the input of a linear layer.

    Args:
        program: of `graphs.export_images`; not changed.
        placement: what is quantized.
        ranges: of the activations, for each of their bit widths.
    """

    def __init__(self, program: ExportedProgram, placement: Placement, ranges: Mapping[int, Ranges]) -> None:
        self._graph = prepare(program, BitWidths(), placement)
        self._parts = _replace_observers(self._graph, ranges)

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
    """Rounds what passes, or not."""

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
            scale, zero_point = _scales(activation_spec(bits), torch.tensor(self._ranges[bits]))
            self._scales[bits] = scale.item(), int(zero_point.item())
        return torch.fake_quantize_per_tensor_affine(values, *self._scales[bits], 0, 2**bits - 1)


class _Weights(nn.Module):
    """Rounds a weight, or not."""

    def __init__(self, num_weights: int) -> None:
        super().__init__()
        self.widths: BitWidths | None = None
        self.num_weights = num_weights
        self._rounded: dict[int, Tensor] = {}

    def forward(self, weight: Tensor) -> Tensor:
        if self.widths is None:
            return weight
        bits = self.widths.weights
        if bits not in self._rounded:
            scales, zero_points = _scales(weight_spec(bits), weight)
            limits = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            self._rounded[bits] = torch.fake_quantize_per_channel_affine(weight, scales, zero_points.int(), 0, *limits)
        return self._rounded[bits]


def _scales(spec: QuantizationSpec, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and zero points that torchao gives values."""
    names = ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis")
    settings = {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}
    observer: Any = spec.observer_or_fake_quant_ctr.with_args(**settings)()
    observer(values)
    return observer.calculate_qparams()


def _replace_observers(graph: fx.GraphModule, ranges: Mapping[int, Ranges]) -> dict[str, list[_Activations | _Weights]]:
    """Put rounding modules in the places of the observers of a prepared graph, and return them by layer."""
    layers: dict[str, list[_Activations | _Weights]] = {}
    for node in graph.graph.nodes:
        observer: Any = graph.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(observer, ObserverBase):
            continue
        source: Any = node.args[0]
        if source.op == "get_attr":
            layer, part = layer_path(source), _Weights(_tensor(graph, source.target).numel())
        else:
            point: str = observer.point  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
            layer = layer_of(point)
            part = _Activations({bits: by_point[point] for bits, by_point in ranges.items()})
        layers.setdefault(layer, []).append(part)
        graph.set_submodule(node.target, part)
    return layers


def _tensor(graph: fx.GraphModule, name: str) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    return getattr(graph.get_submodule(parent), leaf)
