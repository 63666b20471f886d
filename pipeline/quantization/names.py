"""Names of layers, modules and points in an exported graph, as the user's model has them."""

from torch import fx

# Prefix of the exported model's modules (`graphs.Exportable.model`).
ROOT = "model."


def layer_of(point: str) -> str:
    """Return the layer, as `layer_path` names it, or another module that a point belongs to."""
    return point.partition(":")[0]


def layer_path(weight: fx.Node) -> str:
    """Return the path of the layer whose `weight` a node of a graph gets; for any other parameter, its own path."""
    return tensor_name(weight).removesuffix(".weight")


def tensor_name(node: fx.Node) -> str:
    """Return the name in the model of the parameter or buffer that a node of a graph gets."""
    return str(node.target).removeprefix(ROOT)


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module that ran a node; empty if outside of any."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return next(reversed(stack.values()))[0].removeprefix(ROOT)
