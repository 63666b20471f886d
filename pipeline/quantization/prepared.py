"""Layers with weights in a graph with observers: their parameters, and the point at which their input is observed."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from pipeline.quantization.names import layer_path
from pipeline.quantization.operators import WEIGHTED


@dataclass(frozen=True)
class PreparedLayer:
    """One call of a linear layer or convolution in a graph of `graphs.prepare`.

    Attributes:
        layer: path of the module in the model.
        operator: node that computes the layer's output.
        observer: node that observes the layer's input.
        weight: node that gets the layer's weight, which no other layer uses.
        bias: node that gets the layer's bias; None if it has none, or if the bias is computed or used by others too.
    """

    layer: str
    operator: fx.Node
    observer: fx.Node
    weight: fx.Node
    bias: fx.Node | None

    @property
    def groups(self) -> int:
        """Number of a convolution's groups; 1 for a linear layer."""
        return self.operator.args[6] if len(self.operator.args) > 6 else 1  # type: ignore[return-value]


def prepared_layers(graph: fx.GraphModule) -> list[PreparedLayer]:
    """Return all calls of layers with weights of their own, in the graph's order."""
    found = []
    for node in graph.graph.nodes:
        if node.target not in WEIGHTED:
            continue
        arguments: Any = node.args
        observer, weight = arguments[:2]
        if weight.op == "call_module" and weight.args[0].op == "get_attr":
            bias = arguments[2] if len(arguments) > 2 else None
            source = weight.args[0]
            found.append(PreparedLayer(layer_path(source), node, observer, source, _own(bias, source)))
    return found


def _own(bias: Any, weight: fx.Node) -> fx.Node | None:
    """Return the node of a bias if the calls of one layer alone read it."""
    if bias is None or bias.op != "get_attr":
        return None
    shared = [user for user in bias.users if user.target not in WEIGHTED or _weight_of(user) is not weight]
    return None if shared else bias


def _weight_of(operator: fx.Node) -> Any:
    observed: Any = operator.args[1]
    return observed.args[0] if observed.args else observed


def point_of(graph: fx.GraphModule, layer: PreparedLayer) -> str:
    """Return the name of the point at which the input of a layer is observed."""
    observer: Any = graph.get_submodule(str(layer.observer.target))
    return observer.point


def tensor_of(graph: fx.GraphModule, name: str) -> Tensor:
    """Return a parameter or buffer of a graph."""
    parent, _, leaf = name.rpartition(".")
    return getattr(graph.get_submodule(parent), leaf)
