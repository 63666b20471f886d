"""Move scales of channels from one linear layer into the next, where nothing between them mixes channels.

That is so between the values of an attention and its projection, because each channel is averaged over the tokens by
itself. It is also so between two layers with a ReLU between them: for a positive factor a, ReLU(a x) = a ReLU(x). This
does not hold for a GELU.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pipeline.errors import ModelError, first_few
from pipeline.log import logger
from pipeline.quantization.channels import UNCHANGED, Affine, affine_of
from pipeline.quantization.names import module_path

_aten: Any = torch.ops.aten
_LINEAR = _aten.linear.default
_FUSED = _aten.scaled_dot_product_attention.default
_MATMUL = _aten.matmul.default
_SOFTMAX = _aten.softmax.int
# Operators that only move values, or multiply each by a factor that depends on its sign alone.
_MOVES = {
    *(_aten.reshape.default, _aten.view.default, _aten.flatten.using_ints, _aten.unflatten.int),
    *(_aten.transpose.int, _aten.permute.default, _aten.squeeze.dim, _aten.unsqueeze.default),
    *(_aten.unbind.int, _aten.chunk.default, _aten.split.Tensor, _aten.select.int),
    *(_aten.relu.default, _aten.relu_.default),
}
_NO_PAIR = "equalization needs linear layers with nothing but an attention or a ReLU between them"


@dataclass(frozen=True)
class LinearPair:
    """Two linear layers, the second of which alone reads some output channels of the first.

    Attributes:
        rows: int64 [D]: for each input channel of the second layer, the output channel of the first one that it reads.
    """

    first: Affine
    second: Affine
    rows: Tensor


def find_pairs(program: ExportedProgram) -> list[LinearPair]:
    """Return the pairs of a graph, in its order.

    Args:
        program: a graph from `graphs.export_images`.
    """
    return _search(program)[0]


def check_equalization(program: ExportedProgram) -> None:
    """Check that a graph has pairs, and report each attention whose projection is in none of them.

    Raises:
        ModelError: there is no pair.
    """
    pairs, left = _search(program)
    if left:
        logger.info(
            f"note: {len(left)} attentions are not equalized, because there is a normalization or a computed bias "
            f"between values and projection, or the values are used elsewhere: {first_few(left)}"
        )
    if not pairs:
        raise ModelError(_NO_PAIR)


def _search(program: ExportedProgram) -> tuple[list[LinearPair], list[str]]:
    """Return the pairs of a graph, and the paths of attentions that are in none of them."""
    graph: Any = program.module()
    candidates = {node: path for node in graph.graph.nodes if node.target is _LINEAR and (path := _path(node))}
    sources = {path[-1] for path in candidates.values()}
    seen = _Numbered(graph, sources, set(candidates)).inputs(program)
    pairs, reached = [], set()
    for node, path in candidates.items():
        first, second = affine_of(*path[-1].args[1:3]), affine_of(*node.args[1:3])
        rows = _constant(seen[node])
        if first is not None and second is not None and rows is not None:
            pairs.append(LinearPair(first, second, rows))
            reached |= set(path)
    return pairs, [module_path(node) for node in graph.graph.nodes if _mixes_tokens(node) and node not in reached]


def equalize(model: nn.Module, pairs: Sequence[LinearPair]) -> nn.Module:
    """Return a copy of a model that computes the same, with equal ranges of weights (Nagel et al., ICCV 2019, 4.1).

    Each channel's largest weight into the first layer's output and out of the second layer's input become equal.

    Raises:
        ModelError: there is no pair.
    """
    if not pairs:
        raise ModelError(_NO_PAIR)
    equalized = copy.deepcopy(model)
    for pair in pairs:
        _equalize(equalized, pair)
    return equalized


@torch.no_grad()
def _equalize(model: nn.Module, pair: LinearPair) -> None:
    first, second = model.get_parameter(pair.first.weight), model.get_parameter(pair.second.weight)
    rows = pair.rows.to(first.device)
    before, after = first[rows].double(), second.double()
    outgoing, incoming = before.abs().amax(dim=1), after.abs().amax(dim=0)
    scale = torch.where((outgoing > 0) & (incoming > 0), (outgoing / incoming).sqrt(), 1.0)
    first[rows] = (before / scale[:, None]).to(first.dtype)
    second.copy_(after * scale)
    if pair.first.bias is not None:
        bias = model.get_parameter(pair.first.bias)
        bias[rows] = (bias[rows].double() / scale).to(bias.dtype)


def _path(linear: fx.Node) -> list[fx.Node]:
    """Return the nodes from a linear layer's input back to the linear layer it comes from; empty if it does not."""
    path: list[fx.Node] = []
    user, node = linear, linear.args[0]
    while isinstance(node, fx.Node) and _read_apart(node, user):
        path.append(node)
        if node.target is _LINEAR:
            return path
        source = _passed_on(node)
        if source is None:
            return []
        user, node = node, source
    return []


def _passed_on(node: fx.Node) -> Any:
    """Return the input that a node passes on without mixing its channels; None if it computes anything else."""
    if node.target in _MOVES | UNCHANGED or _selects(node):
        return node.args[0]
    if _mixes_tokens(node):
        return node.args[2 if node.target is _FUSED else 1]
    return None


def _mixes_tokens(node: fx.Node) -> bool:
    """Whether a node is the product of an attention's probabilities with its values."""
    return node.target is _FUSED or (node.target is _MATMUL and _is_probability(node.args[0]))


def _is_probability(node: Any) -> bool:
    while node.target in UNCHANGED:
        node = node.args[0]
    return node.target is _SOFTMAX


def _selects(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _read_apart(node: fx.Node, user: fx.Node) -> bool:
    """Return whether no other user of a node reads the same part of its output as this one."""
    others = [other for other in node.users if other is not user and not _reads_type_alone(other, node)]
    if not others:
        return True
    same = all(other.target is user.target and other.args[:-1] == user.args[:-1] for other in others)
    chooses = _selects(user) or user.target is _aten.select.int
    return chooses and same and user.args[-1] not in [other.args[-1] for other in others]


def _reads_type_alone(user: fx.Node, node: fx.Node) -> bool:
    """Whether a user reads only the shape or the type of a node, as rotary positions read the type of the values."""
    return user.target is _aten.sym_size.int or (user.target is _aten.type_as.default and user.args[0] is not node)


class _Numbered(fx.Interpreter):
    """Runs a graph in which some linear layers return the numbers of their output channels instead of values.

    Args:
        sources: the linear layers whose output channels are numbered.
        sinks: nodes whose inputs are wanted.
    """

    def __init__(self, graph: fx.GraphModule, sources: set[fx.Node], sinks: set[fx.Node]) -> None:
        super().__init__(graph)
        self._sources, self._sinks = sources, sinks
        self._inputs: dict[fx.Node, Tensor] = {}

    def inputs(self, program: ExportedProgram) -> dict[fx.Node, Tensor]:
        """Return what enters each of the sinks."""
        arguments, _ = program.example_inputs  # type: ignore[misc]
        with torch.no_grad():
            self.run(*arguments)
        return self._inputs

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        arguments, _ = self.fetch_args_kwargs_from_env(n)
        if n in self._sinks:
            self._inputs[n] = arguments[0]
        if n in self._sources:
            numbers = torch.arange(result.shape[-1], dtype=result.dtype, device=result.device)
            # Later operators may write in place.
            return numbers.expand_as(result).clone()
        if _mixes_tokens(n):
            values: Any = arguments[2 if n.target is _FUSED else 1]
            # The average of equal numbers over the tokens is that number. Of different ones it is no channel's.
            same = bool((values == values[..., :1, :]).all())
            return values[..., :1, :].expand_as(result) if same else torch.full_like(result, torch.nan)
        return result


def _constant(inputs: Tensor) -> Tensor | None:
    """Return the numbers of channels, int64 [D], if they are different, and the same for all tokens."""
    rows = inputs.flatten(0, -2)
    if not (rows == rows[:1]).all() or len(rows[0].unique()) != len(rows[0]):
        return None
    return rows[0].long().cpu()
