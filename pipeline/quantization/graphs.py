"""Export a model as graphs: for whole images, and for subsets of patches."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torchao.quantization.pt2e.observer import MinMaxObserver, ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from pipeline.errors import ModelError, as_line
from pipeline.models import model_input_size
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.prepared import tensor_of
from pipeline.quantization.quantizer import MinMaxQuantizer
from pipeline.quantization.ranges import Ranges
from pipeline.vit.families import check_family, refusal
from pipeline.vit.subset import TokenSubset, fill_slot

# torch.export would treat a batch of 0 or 1 in its example as a constant.
_EXAMPLE_BATCH = 2


class Exportable(nn.Module):
    """A copy of a model, in evaluation mode, with a `patch_drop` slot that gathers tokens if the family allows it.

    The subset is gathered after the patch embedding, so that the graphs with and without a subset have the same
    operators in the same modules, and ranges observed in one apply to the other.

    Args:
        model: a timm classifier, which is copied and not changed.
        fused: whether to keep the fused attention kernel; otherwise its matrix products are nodes of the graph.
    """

    def __init__(self, model: nn.Module, *, fused: bool = True) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model).eval()
        self.subset: TokenSubset | None = None
        if refusal(model) is None:
            self.subset = fill_slot(self.model)
        if not fused:
            for module in self.model.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = False

    def forward(self, images: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Return logits [B, classes] of normalized images [B, C, H, W] at `keep_indices` int64 [B, K] (None: all)."""
        if self.subset is None:
            return self.model(images)
        self.subset.keep_indices = keep_indices
        try:
            return self.model(images)
        finally:
            self.subset.keep_indices = None


def export_images(model: nn.Module, placement: Placement) -> ExportedProgram:
    """Export `forward(images)` as a graph, for any batch size from 1.

    Raises:
        ModelError: the model cannot be exported.
    """
    # With the masks and shapes of other families (BEiT, Hiera), the fused kernel cannot be exported to ONNX.
    exportable = Exportable(model, fused=placement == "linear" and refusal(model) is None)
    return _export(exportable, (_example_images(exportable.model),), ({0: Dim("batch", min=1)},))


def export_subset(model: nn.Module, placement: Placement) -> ExportedProgram:
    """Export `forward(images, keep_indices)` as a graph, for any batch size and number of kept patches from 1.

    Raises:
        ModelError: the model cannot be exported, or cannot be run on a token subset.
    """
    check_family(model)
    exportable = Exportable(model, fused=placement == "linear")
    images = _example_images(exportable.model)
    num_patches = exportable.model.patch_embed.num_patches
    keep = torch.arange(max(2, num_patches // 2), device=images.device).clamp(max=num_patches - 1)
    batch = Dim("batch", min=1)
    shapes = ({0: batch}, {0: batch, 1: Dim("kept", min=1)})
    return _export(exportable, (images, keep.expand(_EXAMPLE_BATCH, -1).contiguous()), shapes)


def prepare(
    program: ExportedProgram, bits: BitWidths, placement: Placement, layers: Mapping[str, BitWidths] | None = None
) -> fx.GraphModule:
    """Return the graph with observers, which have seen nothing yet; the program is not changed."""
    return prepare_pt2e(copy.deepcopy(program).module(), MinMaxQuantizer(bits, placement, layers))


def observer_nodes(prepared: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, Any]]:
    """Yield each node of a prepared graph that calls one of torchao's observers, the node observed, and the observer.

    A module may be put in the place of an observer while iterating. Further nodes that call it are then left out.
    """
    for node in prepared.graph.nodes:
        observer = prepared.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(observer, ObserverBase):
            yield node, node.args[0], observer


def activation_observers(prepared: fx.GraphModule) -> dict[str, MinMaxObserver]:
    """Return the activation observers of a prepared graph by name, in the graph's order."""
    observers: dict[str, MinMaxObserver] = {}
    for _, _, observer in observer_nodes(prepared):
        if hasattr(observer, "point"):
            assert observers.setdefault(observer.point, observer) is observer, "two observers have one name"
    return observers


def point_names(program: ExportedProgram, placement: Placement) -> list[str]:
    """Return the names of the points at which a model's activations are observed, in the graph's order.

    Raises:
        ModelError: there is nothing to quantize.
    """
    return list(activation_observers(prepare(program, BitWidths(), placement)))


def convert(
    program: ExportedProgram,
    bits: BitWidths,
    placement: Placement,
    ranges: Ranges,
    layers: Mapping[str, BitWidths] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> fx.GraphModule:
    """Return the quantized graph of a program that takes only images, using ranges that another graph observed.

    Args:
        program: a graph from `export_images`; it is not changed.
        bits: bit widths of all layers that have none of their own.
        placement: what is quantized.
        layers: bit widths of single layers, by their paths; None for none.
        ranges: range of each activation observer. Observers of `export_subset`'s graph have the same names.
        parameters: values that replace the graph's own parameters, by name: either weights, whose scales stay, and
            biases (see `refinement.Refinement`), or all parameters (see `learned.LearnedGraph`).
        scales: scales of weights, float32 [out], by the name of the weight. All others are computed from the graph's
            own weights.

    Raises:
        ModelError: the ranges do not belong to this model's observers.
    """
    prepared = prepare(program, bits, placement, layers)
    observers = activation_observers(prepared)
    if observers.keys() != ranges.keys():
        differing = sorted(observers.keys() ^ ranges.keys())
        raise ModelError(f"ranges do not fit the model: {len(differing)} observers differ, such as {differing[0]!r}")
    with torch.no_grad():
        # One forward fills the observers of the weights. Those of the activations are overwritten afterwards.
        prepared(*_example_arguments(program))
        for name, observer in observers.items():
            low, high = ranges[name]
            observer.min_val.fill_(low)
            observer.max_val.fill_(high)
        for name, scale in (scales or {}).items():
            _set_scales(prepared, name, scale)
        for name, values in (parameters or {}).items():
            tensor_of(prepared, name).copy_(values)
    converted = convert_pt2e(prepared)
    _drop_unused_tensors(converted)
    return converted


def _set_scales(prepared: fx.GraphModule, weight: str, scales: Tensor) -> None:
    """Set the extremes that the observers of a weight have seen, so that they give these scales [out]."""
    for _, source, observer in observer_nodes(prepared):
        if str(source.target) == weight:
            largest = scales * (observer.quant_max - observer.quant_min) / 2
            observer.min_val.copy_(-largest)
            observer.max_val.copy_(largest)


def reexport(converted: fx.GraphModule, program: ExportedProgram) -> ExportedProgram:
    """Export a converted graph as a program with the inputs of the program it came from."""
    arguments = _example_arguments(program)
    return _export(converted, arguments, tuple({0: Dim("batch", min=1)} for _ in arguments))


def _export(module: nn.Module, arguments: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...]) -> ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(module, arguments, dynamic_shapes=shapes)
    except (UserError, RuntimeError, ValueError) as error:
        reason = as_line(error)[:300]
        raise ModelError(f"{type(module).__name__} cannot be exported: {reason}") from error


def _example_images(model: Any) -> Tensor:
    return torch.zeros(_EXAMPLE_BATCH, *model_input_size(model), device=next(model.parameters()).device)


def _example_arguments(program: ExportedProgram) -> tuple[Tensor, ...]:
    arguments, _ = program.example_inputs  # type: ignore[misc]
    return arguments


def _drop_unused_tensors(graph_module: fx.GraphModule) -> None:
    """Drop the float weights that conversion replaced, which would be saved and deployed beside the int8 ones."""
    used = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    names = [name for name, _ in (*graph_module.named_parameters(), *graph_module.named_buffers())]
    for name in names:
        if name not in used:
            parent, _, leaf = name.rpartition(".")
            delattr(graph_module.get_submodule(parent), leaf)
