"""Find the layers of a model that stay in float, whatever the placement, and say why."""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from pipeline.errors import first_few
from pipeline.log import logger
from pipeline.quantization.names import tensor_name
from pipeline.quantization.quantizer import weight_edges

# Modules that multiply by weights.
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.Bilinear, nn.MultiheadAttention)
# Operators that multiply by weights, and that no placement quantizes.
_MULTIPLY = {
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "bilinear"),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
}
_COMPUTED = "their weights are computed in the forward pass"
_APART = "torch.export keeps their part of the forward pass as a graph of its own"
_UNREAD = "the forward pass does not read their weights"


def find_float_layers(model: nn.Module, program: ExportedProgram) -> dict[str, str]:
    """Return each layer of a model that no placement quantizes, and why.

    Args:
        model: the model that was exported.
        program: the graph from `graphs.export_images`.
    """
    graph: Any = program.module().graph
    # Compared by identity, because the export chooses one of the names of a layer that has two.
    quantized = {id(_tensor(model, weight)) for weight, _ in weight_edges(graph)}
    readers: dict[int, set[Any]] = {}
    for node in graph.find_nodes(op="get_attr"):
        readers.setdefault(id(_tensor(model, node)), set()).update(user.target for user in node.users)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS) and quantized.isdisjoint(_weights(module, recurse=False)):
            targets = set[Any]().union(*(readers.get(weight, ()) for weight in _weights(module, recurse=True)))
            found[name] = _reason(targets)
    return found


def report_float_layers(name: str, layers: dict[str, str]) -> None:
    """Report on standard error which layers of a model stay in float, and why, if there are any."""
    for why in dict.fromkeys(layers.values()):
        own = [layer for layer, reason in layers.items() if reason == why]
        logger.info(
            f"note: {len(own)} layer{'' if len(own) == 1 else 's'} of {name!r} stay{'s' if len(own) == 1 else ''} in "
            f"float, because {why}: {first_few(map(repr, own))}"
        )


def _tensor(model: nn.Module, node: fx.Node) -> Any:
    """Return the parameter or buffer that a node gets; None if it gets a constant that the export made."""
    try:
        return attrgetter(tensor_name(node))(model)
    except AttributeError:
        return None


def _weights(module: nn.Module, *, recurse: bool) -> Iterator[int]:
    """Yield the identities of a layer's parameters other than biases."""
    return (id(value) for value in module.parameters(recurse=recurse) if value.ndim > 1)


def _reason(readers: set[Any]) -> str:
    """Return why a layer stays in float whose weights these operators read."""
    if not readers:
        return _UNREAD
    names = {target.name().removeprefix("aten::").partition(".")[0] for target in readers if _is_operator(target)}
    if multiply := sorted(names & _MULTIPLY):
        return f"no placement quantizes {multiply[0]}"
    return _COMPUTED if names else _APART


def _is_operator(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload)
