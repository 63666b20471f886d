"""Find the residual stream of an exported model: the sums of branches with what they were computed from."""

from collections import Counter
from collections.abc import Container
from typing import Any

import torch
from torch import fx

from pipeline.quantization.names import module_path
from pipeline.quantization.operators import ADD, WEIGHTED


def find_residuals(graph: fx.Graph) -> dict[fx.Node, fx.Node | None]:
    """Return each sum of the residual stream, in the graph's order, with the stream that the branch was computed from.

    Two kinds of sums of activations are of the stream, whatever the family calls its blocks: one whose first operand,
    or second, layers with weights computed from the other; and one that a numbered module makes itself, such as
    `layers.0.blocks.1`, where the shortcut is projected or pooled as well (Hiera, ResNet), or the branch has no weights
    (PoolFormer): the stream is None then. A mask or a position that is added is no activation.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    active = _activations(graph)
    found: dict[fx.Node, fx.Node | None] = {}
    for node in graph.nodes:
        operands: Any = node.args[:2]
        if node.target not in ADD or not all(operand in active for operand in operands):
            continue
        stream = next((one for one, other in (operands, operands[::-1]) if _comes_from(one, other, order)), None)
        if stream is not None or module_path(node).rpartition(".")[2].isdigit():
            found[node] = stream
    return found


def stream_points(
    residuals: dict[fx.Node, fx.Node | None], weighted: Container[fx.Node]
) -> dict[fx.Node, dict[Any, str]]:
    """Return names for what is observed at each sum: its output and, at the first sum, the edges of the stream.

    The first of several sums in a module is called `attention`, the others and a single one `output`.

    Args:
        residuals: sums of the residual stream, from `find_residuals`.
        weighted: nodes of the layers with weights, whose inputs have names of their own. A block of a CNN begins with
            one.
    """
    number, seen = Counter(map(module_path, residuals)), set[str]()
    points: dict[fx.Node, dict[Any, str]] = {}
    for node, stream in residuals.items():
        block = module_path(node)
        points[node] = {node: f"{block}:{'attention' if block not in seen and number[block] > 1 else 'output'}"}
        if not seen and stream is not None:
            # After the token gather, so that the observer sees what the blocks read; every other block reads its
            # predecessor.
            readers = [user for user in stream.users if user is node or module_path(user).startswith(f"{block}.")]
            points[node] |= {(stream, reader): f"{block}:input" for reader in readers if reader not in weighted}
        seen.add(block)
    return points


def _activations(graph: fx.Graph) -> set[Any]:
    """Return the nodes whose tensors are computed from those of the graph's inputs, and not from their sizes alone."""
    found: set[Any] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (_holds_tensors(node) and found.intersection(node.all_input_nodes)):
            found.add(node)
    return found


def _holds_tensors(node: fx.Node) -> bool:
    """Return whether a node's value holds tensors, and not only sizes."""
    return not isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


def _comes_from(stream: fx.Node, branch: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Return whether a branch was computed from the stream, by layers with weights among others."""
    waiting, before = [branch], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node not in before and order[node] > order[stream] and _holds_tensors(node):
            before.add(node)
            waiting += node.all_input_nodes
    between = {stream}
    for node in sorted(before, key=lambda each: order[each]):
        if not between.isdisjoint(node.all_input_nodes):
            between.add(node)
    return branch in between - {stream} and any(node.target in WEIGHTED for node in between)
