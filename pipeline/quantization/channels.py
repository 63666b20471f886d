"""Find normalizations whose output linear layers alone read, and observe their channels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pipeline.errors import DatasetError, first_few
from pipeline.log import logger
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.names import tensor_name
from pipeline.quantization.observe import GraphReader, export_graph

_aten: Any = torch.ops.aten
_NORMS = {_aten.layer_norm.default, _aten.rms_norm.default}
# Operators that keep channels apart, unless they work along the last dimension.
_CHANNELWISE = {_aten.select.int, _aten.slice.Tensor, _aten.mean.dim}
UNCHANGED = {_aten.dropout.default, _aten.clone.default, _aten.contiguous.default, _aten.alias.default}

# Weight of a normalization → smallest and largest value of each channel that its readers saw: float32 [D]. As arrays,
# because Ray Train's workers may not return tensors.
ChannelRanges = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Affine:
    """Names of a weight and, where there is one, of its bias, in the model."""

    weight: str
    bias: str | None


@dataclass(frozen=True)
class NormReaders:
    """A normalization, and the linear layers that are the only readers of its output.

    A factor of each channel can then be moved from the normalization into these layers.
    """

    norm: Affine
    linears: tuple[Affine, ...]


def find_norm_readers(graph: fx.Graph) -> list[NormReaders]:
    """Return the normalizations of an exported graph whose output linear layers alone read, in the graph's order.

    In a ViT with normalization before each branch, these are all: query, key and value read the first of a block, the
    MLP's first layer the second, and the head the last. Normalizations after a branch, whose output is added to the
    residual stream, are not among them, nor are those whose weights are used twice.
    """
    return [readers for readers, _ in _find(graph)]


def report_other_norms(graph: fx.Graph) -> None:
    """Report on standard error which normalizations of a graph are not among `find_norm_readers`."""
    found = {pair.norm.weight for pair in find_norm_readers(graph)}
    norms = [affine_of(*_norm_parameters(node)) for node in graph.nodes if node.target in _NORMS]
    if left := [norm.weight for norm in norms if norm is not None and norm.weight not in found]:
        logger.info(
            f"note: {len(left)} normalizations are not smoothed, because not only linear layers read their output: "
            f"{first_few(map(repr, left))}"
        )


def _find(graph: fx.Graph) -> Iterator[tuple[NormReaders, list[fx.Node]]]:
    for node in graph.nodes:
        if node.target not in _NORMS:
            continue
        linears = _linear_readers(node)
        norm = affine_of(*_norm_parameters(node))
        affines = [_reader_of(*linear.args[1:3]) for linear in linears or []]
        if norm is not None and affines and all(affine is not None for affine in affines):
            yield NormReaders(norm, tuple(affine for affine in affines if affine is not None)), linears or []


def _norm_parameters(node: fx.Node) -> tuple[Any, Any]:
    arguments = [*node.args[2:4], None, None][:2]
    # The fourth argument of an RMSNorm is its epsilon.
    return (arguments[0], arguments[1] if node.target is _aten.layer_norm.default else None)


def _reader_of(weight: Any, bias: Any = None) -> Affine | None:
    """Return the names of a linear layer's parameters. A computed bias, as EVA's, is left out: it can take no shift."""
    return affine_of(weight, bias if bias is None or bias.op == "get_attr" else None)


def affine_of(weight: Any = None, bias: Any = None) -> Affine | None:
    """Return the names of parameters; None if there is no weight, or another operator uses one of them as well."""
    used = [parameter for parameter in (weight, bias) if parameter is not None]
    if weight is None or any(p.op != "get_attr" or len(p.users) != 1 for p in used):
        return None
    names = [None if parameter is None else tensor_name(parameter) for parameter in (weight, bias)]
    return Affine(str(names[0]), names[1])


def _linear_readers(node: fx.Node) -> list[fx.Node] | None:
    """Return the linear layers that read a node's output; None if anything else does."""
    found: list[fx.Node] = []
    for user in node.users:
        if user.target is _aten.linear.default and user.args[0] is node:
            found.append(user)
        elif _keeps_channels(user):
            deeper = _linear_readers(user)
            if deeper is None:
                return None
            found += deeper
        else:
            return None
    return found


def _keeps_channels(node: fx.Node) -> bool:
    if node.target in UNCHANGED:
        return True
    if node.target not in _CHANNELWISE:
        return False
    source: Any = node.args[0]
    dims: Any = node.args[1] if len(node.args) > 1 else 0
    last = source.meta["val"].ndim - 1
    return all(dim % (last + 1) != last for dim in (dims if isinstance(dims, Sequence) else [dims]))


class _Extremes(nn.Module):
    """Remembers the smallest and largest value of each channel of what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        flat = values.detach().flatten(0, -2)
        low, high = flat.amin(dim=0).cpu(), flat.amax(dim=0).cpu()
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        return values


class ChannelObserver(GraphReader):
    """A graph that remembers the range of each channel that leaves a normalization for linear layers.

    Args:
        model: the model, on the device to calibrate on.
        placement: placement of the quantization.

    Attributes:
        readers: the normalizations that are observed.

    Raises:
        ModelError: the model cannot be exported.
    """

    def __init__(self, model: nn.Module, placement: Placement) -> None:
        graph: Any = export_graph(model, placement).module()
        found = list(_find(graph.graph))
        self.readers = [readers for readers, _ in found]
        self._extremes = {readers.norm.weight: _watch_inputs(graph, linears) for readers, linears in found}
        graph.recompile()
        super().__init__(model, graph)

    def ranges(self) -> ChannelRanges:
        """Return the ranges seen so far; normalizations that no image has passed are missing."""
        return {
            name: (extremes.low.numpy(), extremes.high.numpy())
            for name, extremes in self._extremes.items()
            if extremes.low is not None and extremes.high is not None
        }


def _watch_inputs(graph: Any, linears: Sequence[fx.Node]) -> _Extremes:
    """Let a module see each different input of some linear layers."""
    extremes = _Extremes()
    # One of the linear layers stands for all that read the same input.
    inputs: dict[Any, fx.Node] = {linear.args[0]: linear for linear in linears}
    for source, first in inputs.items():
        name = f"extremes_{first.name}"
        graph.add_submodule(name, extremes)
        with graph.graph.inserting_before(first):
            first.replace_input_with(source, graph.graph.call_module(name, (source,)))
    return extremes


def merge_channels(workers: Sequence[ChannelRanges]) -> ChannelRanges:
    """Return the ranges over the images of all workers.

    Raises:
        DatasetError: a value is not finite.
    """
    merged: ChannelRanges = {}
    for ranges in workers:
        for name, (low, high) in ranges.items():
            before = merged.get(name, (low, high))
            merged[name] = np.minimum(before[0], low), np.maximum(before[1], high)
    for name, bounds in merged.items():
        if not np.isfinite(bounds).all():
            raise DatasetError(f"activations after {name!r} are not finite")
    return merged
