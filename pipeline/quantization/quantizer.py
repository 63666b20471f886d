"""Quantizer for PT2E: observers on weights and activations, at any bit width; ranges may come from anywhere."""

from collections.abc import Container, Mapping, Set
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    EdgeOrNode,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)

from pipeline.errors import ModelError
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.names import layer_of, layer_path, module_path
from pipeline.quantization.operators import ADD, WEIGHTED
from pipeline.quantization.residuals import find_residuals, stream_points
from pipeline.quantization.rounding import weight_limits

_ANNOTATION = "quantization_annotation"
_aten: Any = torch.ops.aten
_MATMUL = {_aten.matmul.default}
_SOFTMAX = {_aten.softmax.int}
_NONLINEAR = {_aten.gelu.default, _aten.silu.default, _aten.relu.default}
# Operators that pass values on unchanged, and are skipped when the producer or consumer of a value is looked for.
_PASSES_ON = {_aten.dropout.default, _aten.chunk.default, _aten.split.Tensor}
# Operators that may stand between the product of query and key and its softmax: a scale, masks of windows, which need
# another shape, and layers that mix heads.
_BEFORE_SOFTMAX = {
    *(_aten.view.default, _aten.reshape.default, _aten.permute.default, _aten.transpose.int),
    *(_aten.mul.Tensor, _aten.linear.default),
}
# The smallest scale. The observers' default, 1.2e-7, is too large for weights: layers whose weights are smaller than
# 128 times that would be rounded to zero. The product of two scales of this size can still be represented in float32.
_SMALLEST_SCALE = 2.0**-64


class MinMaxQuantizer(Quantizer):
    """Annotates an exported ViT for torchao's PT2E.

    Weights are symmetric with one scale per output channel, activations asymmetric with one scale per tensor.
    Placements:

    - `linear`: the inputs and weights of linear layers and convolutions.
    - `matmul`: the same, and both operands of the attention's matrix products.
    - `published`: as in SMI (Hu et al., ICML 2024) after PSAQ-ViT (Li et al., ECCV 2022): the inputs and weights of
      linear layers and convolutions, their outputs unless these enter a nonlinearity, the attention logits before
      softmax, and the residual stream at every sum, see `residuals`. Probabilities, LayerNorm, softmax and the position
      embedding stay in float; attention @ value is the input of `proj`.

    Every activation observer gets its name as the attribute `point`: the module's path and what is observed, such as
    `blocks.0.attn.qkv:input`; if a model calls a module more than once, the second call is
    `blocks.0.attn.qkv:input#2`.

    Args:
        bits: bit widths of all layers that have none of their own.
        placement: one of the placements above.
        layers: bit widths of single layers, by the names of `layer_of`. Layers that read the same values, as separate
            query, key and value layers do, share the activation width of the first one.
    """

    def __init__(self, bits: BitWidths, placement: Placement, layers: Mapping[str, BitWidths] | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.placement: Placement = placement
        self.layers = layers or {}
        self._points: dict[EdgeOrNode, str] = {}

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Attach the specification of every observer to its node."""
        self._points = find_points(model.graph, self.placement)
        for edge in weight_edges(model.graph):
            bits = self.layers.get(layer_path(edge[0]), self.bits)
            _annotation(edge[1]).input_qspec_map[edge[0]] = weight_spec(bits.weights)
        # Edges that leave one node are one point with one range, whichever layers they lead to.
        widths: dict[fx.Node, int] = {}
        for point, name in self._points.items():
            producer = point if isinstance(point, fx.Node) else point[0]
            own = self.layers.get(layer_of(name), self.bits).activations
            activation = activation_spec(widths.setdefault(producer, own))
            if isinstance(point, fx.Node):
                _annotation(point).output_qspec = activation
            else:
                _annotation(point[1]).input_qspec_map[point[0]] = activation
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Refuse a graph without anything to quantize.

        Raises:
            ModelError: the graph has no linear layer or convolution with weights of its own.
        """
        if not self._points:
            raise ModelError("the exported model has no linear layer or convolution to quantize")

    def prepare_obs_or_fq_callback(
        self, model: fx.GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        """Name the activation observers; an observer that several edges share gets the name of the first."""
        for edge_or_node, name in self._points.items():
            observer = edge_or_node_to_obs_or_fq[edge_or_node]
            if not hasattr(observer, "point"):
                observer.point = name


def activation_spec(bits: int) -> QuantizationSpec:
    """Return the specification of activations: unsigned, asymmetric, one scale per tensor, 0 to 2^bits - 1."""
    container = torch.uint8 if bits <= 8 else torch.uint16
    observer = MinMaxObserver.with_args(eps=_SMALLEST_SCALE)
    return QuantizationSpec(container, observer, 0, 2**bits - 1, torch.per_tensor_affine)


def weight_spec(bits: int) -> QuantizationSpec:
    """Return the specification of weights: signed, symmetric, one scale per output channel."""
    container = torch.int8 if bits <= 8 else torch.int16
    low, high = weight_limits(bits)
    observer = PerChannelMinMaxObserver.with_args(eps=_SMALLEST_SCALE)
    return QuantizationSpec(container, observer, low, high, torch.per_channel_symmetric, ch_axis=0)


def scales_of(spec: QuantizationSpec, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and zero points that torchao gives values."""
    names = ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis")
    settings = {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}
    observer: Any = spec.observer_or_fake_quant_ctr.with_args(**settings)()
    observer(values)
    return observer.calculate_qparams()


def weight_edges(graph: fx.Graph) -> list[tuple[fx.Node, fx.Node]]:
    """Return (weight, operator) of each linear layer and convolution with a weight of its own."""
    weighted = [node for node in graph.nodes if node.target in WEIGHTED]
    return [(node.args[1], node) for node in weighted if node.args[1].op == "get_attr"]


def find_points(graph: fx.Graph, placement: Placement) -> dict[EdgeOrNode, str]:
    """Return the name of each observed point, an edge (producer, consumer) or a node's output, in the graph's order."""
    points: dict[EdgeOrNode, str] = {}
    weighted = {consumer: layer_path(weight) for weight, consumer in weight_edges(graph)}
    residuals = find_residuals(graph)
    stream = stream_points(residuals, weighted)
    for node in graph.nodes:
        if node in weighted:
            points[(node.args[0], node)] = f"{weighted[node]}:input"
        if placement == "matmul" and node.target in _MATMUL:
            points |= _operands(node, residuals)
        if placement == "published":
            points |= _outputs(node, weighted, residuals) | stream.get(node, {})
    return _number_calls(points)


def _number_calls(points: dict[EdgeOrNode, str]) -> dict[EdgeOrNode, str]:
    """Number the points of modules that are called more than once, whose names would be equal.

    Edges that leave the same node count as one point.
    """
    producers: dict[str, list[fx.Node]] = {}
    numbered: dict[EdgeOrNode, str] = {}
    for point, name in points.items():
        producer = point if isinstance(point, fx.Node) else point[0]
        seen = producers.setdefault(name, [])
        if producer not in seen:
            seen.append(producer)
        number = seen.index(producer) + 1
        numbered[point] = name if number == 1 else f"{name}#{number}"
    return numbered


def _operands(node: fx.Node, residuals: Container[fx.Node]) -> dict[EdgeOrNode, str]:
    """Return both operands of an attention's matrix product: query @ key, or probability @ value."""
    leads = _leads_to(node, _SOFTMAX, residuals, _BEFORE_SOFTMAX)
    names = ("query", "key") if leads else ("probability", "value")
    return {(node.args[i], node): f"{module_path(node)}:{name}" for i, name in enumerate(names)}  # type: ignore[misc]


def _outputs(node: fx.Node, weighted: dict[fx.Node, str], residuals: Container[fx.Node]) -> dict[EdgeOrNode, str]:
    """Return the outputs that the `published` placement quantizes: of layers with weights, and attention logits."""
    if node in weighted:
        return {} if _leads_to(node, _NONLINEAR, residuals) else {node: f"{weighted[node]}:output"}
    if node.target in _MATMUL and _leads_to(node, _SOFTMAX, residuals, _BEFORE_SOFTMAX):
        return {node: f"{module_path(node)}:logits"}
    return {}


def _leads_to(node: fx.Node, targets: Set[Any], residuals: Container[fx.Node], through: Set[Any] = frozenset()) -> bool:
    """Return whether a node's output enters one of the targets, unchanged, with a mask added, or through others.

    The residual stream is not followed.
    """
    for user in node.users:
        passes = user.target in _PASSES_ON | ADD | through or getattr(user.target, "__name__", "") == "getitem"
        if user.target in targets or (
            passes and user not in residuals and _leads_to(user, targets, residuals, through)
        ):
            return True
    return False


def _annotation(node: fx.Node) -> QuantizationAnnotation:
    return node.meta.setdefault(_ANNOTATION, QuantizationAnnotation(_annotated=True))
