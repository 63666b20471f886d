"""Sum inputs of layers with weights, and products of their channels, exactly, however the images are divided.

Sums of floats depend on their order. So each value is rounded to a whole multiple of a power of two, chosen so that the
largest value seen is at most 2^15 of them, and these whole numbers are added up: the same for any number of workers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.graphs import observer_nodes, prepare
from pipeline.quantization.observe import GraphReader, export_graph
from pipeline.quantization.prepared import PreparedLayer, point_of, prepared_layers, tensor_of
from pipeline.quantization.quantizer import activation_spec, scales_of
from pipeline.quantization.ranges import Ranges

# Rounding to 2^15 steps is far finer than 8 bits.
_FIXED_BITS = 15
# Number of rows that are multiplied at once; more take more memory. The products of up to 2^22 rows, each up to 2^30,
# are exact in float64.
_ROWS = 2**16


@dataclass(frozen=True)
class Moments:
    """Sums over all rows that entered a layer: tokens, or the patches under a convolution's kernel.

    As arrays, because Ray Train's workers may not return tensors.

    Attributes:
        count: number of rows.
        step: value of one unit of `total` and of `products`.
        total: int64 [in], sum of each channel, in units of `step`.
        levels: for each bit width of activations, int64 [in]: sum of the quantized values minus their zero point.
        scales: for each bit width of activations, the value of one unit of `levels`.
        products: int64 [in, in], X^T X over all rows X, in units of `step` squared; None if it was not asked for.
    """

    count: int
    step: float
    total: np.ndarray
    levels: dict[int, np.ndarray]
    scales: dict[int, float]
    products: np.ndarray | None

    def mean(self) -> Tensor:
        """Return the mean of each channel, float64 [in]."""
        return torch.from_numpy(self.total).double() * (self.step / self.count)

    def quantized_mean(self, bits: int) -> Tensor:
        """Return the mean of each channel after quantization to so many bits, float64 [in]."""
        return torch.from_numpy(self.levels[bits]).double() * (self.scales[bits] / self.count)


class MomentObserver(GraphReader):
    """A graph that adds up what enters each layer with weights.

    Args:
        model: the model, on the device to calibrate on.
        placement: placement of the quantization.
        extremes: smallest and largest value at each point.
        ranges: range at each point, for each bit width of activations.
        products: whether to sum the products of channels, which takes 8 bytes for each pair of a layer's input
            channels.

    Raises:
        ModelError: the model cannot be exported.
    """

    def __init__(
        self, model: nn.Module, placement: Placement, extremes: Ranges, ranges: Mapping[int, Ranges], *, products: bool
    ) -> None:
        graph = prepare(export_graph(model, placement), BitWidths(), placement)
        super().__init__(model, graph)
        self._sums: dict[str, _Sums] = {}
        device = next(model.parameters()).device
        layers = [layer for layer in prepared_layers(graph) if layer.groups == 1]
        points = {layer.observer.target: (point_of(graph, layer), layer) for layer in layers}
        for node, _, _ in observer_nodes(graph):
            if node.target not in points:
                graph.set_submodule(str(node.target), nn.Identity())
        for target, (point, layer) in points.items():
            scales = {bits: _scale(by_point[point], bits) for bits, by_point in ranges.items()}
            sums = _Sums(_width(graph, layer), fixed_step(*extremes[point]), scales, _unfolding(layer), products)
            self._sums[point] = sums.to(device)
            graph.set_submodule(str(target), sums)
            if self._reads_subsets and _embeds_patches(model, layer):
                layer.observer.args = (*layer.observer.args, _keep_indices(graph))
        graph.recompile()

    def moments(self, add: Callable[[Tensor], Tensor] = lambda own: own) -> dict[str, Moments]:
        """Return the sums seen so far, by point.

        Args:
            add: function that returns the sum over all workers of the int64 tensors that each of them passes to it, in
                the same order.
        """
        return {point: sums.moments(add) for point, sums in self._sums.items()}


def fixed_step(low: float, high: float) -> float:
    """Return the power of two whose multiples represent the values between two extremes."""
    _, exponent = math.frexp(max(abs(low), abs(high)))
    return 2.0 ** (exponent - _FIXED_BITS)


def _scale(bounds: tuple[float, float], bits: int) -> tuple[float, int]:
    scale, zero_point = scales_of(activation_spec(bits), torch.tensor(bounds))
    return scale.item(), int(zero_point.item())


def _width(graph: fx.GraphModule, layer: PreparedLayer) -> int:
    return tensor_of(graph, str(layer.weight.target))[0].numel()


@dataclass(frozen=True)
class _Unfolding:
    """How a convolution moves its kernel, along each of its dimensions.

    Attributes:
        padding: number of zeros before and after the values, for each dimension.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def rows(self, values: Tensor) -> Tensor:
        """Return what lies under the kernel at each place, [B, places, in], of values [B, C, ...]."""
        number = len(self.kernel)
        # The last dimension comes first.
        values = F.pad(values, [zeros for pair in reversed(self.padding) for zeros in pair])
        moves = zip(self.kernel, self.stride, self.dilation, strict=True)
        for dim, (kernel, stride, dilation) in enumerate(moves, start=2):
            values = values.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        # [B, C, *places, *kernel]
        return values.movedim(1, number + 1).flatten(number + 1).flatten(1, number)


def _unfolding(layer: PreparedLayer) -> _Unfolding | None:
    if layer.operator.target is torch.ops.aten.linear.default:
        return None
    kernel = tuple(layer.weight.meta["val"].shape[2:])
    given: Any = layer.operator.args[3:6]
    stride, padding, dilation = [*given, *(1, 0, 1)[len(given) :]]
    stride, dilation = _for_each(stride, kernel), _for_each(dilation, kernel)
    return _Unfolding(kernel, stride, _zeros(padding, kernel, dilation), dilation)


def _for_each(value: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return a setting of a convolution for each dimension of its kernel."""
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * len(kernel) if len(given) == 1 else given


def _zeros(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return how many zeros a convolution puts before and after its input in each dimension."""
    if padding == "same":
        totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        # torch puts the odd one behind.
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((zeros, zeros) for zeros in _for_each(0 if padding == "valid" else padding, kernel))


def _embeds_patches(model: Any, layer: PreparedLayer) -> bool:
    """Whether a layer reads each patch of an image by itself."""
    unfolding, patch = _unfolding(layer), tuple(model.patch_embed.patch_size)
    return unfolding is not None and unfolding.kernel == unfolding.stride == patch


def _keep_indices(graph: fx.GraphModule) -> fx.Node:
    _, keep = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return keep


class _Sums(nn.Module):
    """Adds up the rows that pass."""

    count: Tensor
    total: Tensor
    levels: Tensor
    products: Tensor | None

    def __init__(
        self,
        width: int,
        step: float,
        scales: Mapping[int, tuple[float, int]],
        unfolding: _Unfolding | None,
        products: bool,
    ) -> None:
        super().__init__()
        self._step, self._scales, self._unfolding = step, scales, unfolding
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(width, dtype=torch.int64))
        self.register_buffer("levels", torch.zeros(len(scales), width, dtype=torch.int64))
        self.register_buffer("products", torch.zeros(width, width, dtype=torch.int64) if products else None)

    def forward(self, values: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        for rows in self._rows(values, keep_indices).split(_ROWS):
            self._add(rows)
        return values

    def _rows(self, values: Tensor, keep_indices: Tensor | None) -> Tensor:
        if self._unfolding is None:
            return values.flatten(0, -2)
        rows = self._unfolding.rows(values)
        if keep_indices is not None:
            # Stopped patches are covered by a kept one, which must not count more than once.
            rows = rows.gather(1, keep_indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
        return rows.flatten(0, 1)

    def _add(self, rows: Tensor) -> None:
        fixed = (rows.double() / self._step).round()
        self.count += len(rows)
        self.total += fixed.sum(dim=0).long()
        if self.products is not None:
            self.products += (fixed.T @ fixed).long()
        for number, (bits, (scale, zero_point)) in enumerate(self._scales.items()):
            quantized = ((rows / scale).round() + zero_point).clamp(0, 2**bits - 1) - zero_point
            self.levels[number] += quantized.double().sum(dim=0).long()

    def moments(self, add: Callable[[Tensor], Tensor]) -> Moments:
        buffers = {name: add(tensor).cpu().numpy() for name, tensor in self.named_buffers()}
        return Moments(
            int(buffers["count"]),
            self._step,
            buffers["total"],
            dict(zip(self._scales, buffers["levels"], strict=True)),
            {bits: scale for bits, (scale, _) in self._scales.items()},
            buffers.get("products"),
        )
