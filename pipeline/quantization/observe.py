"""Observe the activation ranges of a model on images, for all bit widths in one pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.graphs import activation_observers, export_images, export_subset, observer_nodes, prepare
from pipeline.quantization.observers import MinMax, Observer, extremes
from pipeline.quantization.ranges import Ranges
from pipeline.vit.families import refusal


class GraphReader:
    """A graph that reads calibration images: at their kept patches or, for families that cannot, whole.

    Args:
        model: the model, on the device to calibrate on.
        graph: a graph from `export_graph`, with observer modules inserted.
    """

    def __init__(self, model: nn.Module, graph: fx.GraphModule) -> None:
        self._model: Any = model
        self._graph = graph
        self._reads_subsets = refusal(model) is None
        self._device = next(model.parameters()).device
        self.num_images = 0

    def observe(self, batches: Iterable[CalibrationBatch], count: Callable[[int], None] = lambda _: None) -> list[str]:
        """Read images once and return their ids.

        Args:
            batches: batches of images to read.
            count: function that is called with the number of images of each batch, once it is read.
        """
        image_ids = []
        for batch in batches:
            arguments = self._arguments(batch)
            with torch.no_grad():
                self._graph(*arguments)
            self.num_images += len(batch.images)
            image_ids += batch.image_ids
            count(len(batch.images))
        return image_ids

    def _arguments(self, batch: CalibrationBatch) -> tuple[Tensor, ...]:
        images = batch.images.to(self._device)
        if not self._reads_subsets:
            return (images,)
        keep = batch.keep_indices.to(self._device)
        return cover_stopped(images, keep, self._model.patch_embed.patch_size[0]), keep


def export_graph(model: nn.Module, placement: Placement) -> ExportedProgram:
    """Export the graph that reads calibration images, see `GraphReader`.

    Raises:
        ModelError: the model cannot be exported.
    """
    return (export_subset if refusal(model) is None else export_images)(model, placement)


class RangeObserver(GraphReader):
    """A graph with an observer at every point.

    What is observed does not depend on a bit width: ranges and scales for any width follow from it.

    Args:
        model: the model, on the device to calibrate on.
        placement: placement of the quantization, which decides what is observed.
        make: function that makes the observer of a point.

    Attributes:
        observers: observer of each point, in the graph's order.

    Raises:
        ModelError: the model cannot be exported.
    """

    def __init__(self, model: nn.Module, placement: Placement, make: Callable[[], Observer] = MinMax) -> None:
        graph = prepare(export_graph(model, placement), BitWidths(), placement)
        self.observers = _watch(graph, make)
        super().__init__(model, graph)

    def ranges(self) -> Ranges:
        """Return the smallest and largest values seen so far; (inf, -inf) at every point before the first image."""
        return extremes(self.observers)


class _Watched(nn.Module):
    """Passes values on unchanged, and shows them to an observer."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def forward(self, values: Tensor) -> Tensor:
        self._observer.update(values)
        return values


def _watch(graph: fx.GraphModule, make: Callable[[], Observer]) -> dict[str, Observer]:
    """Put an observer of our own in the place of each of torchao's in a prepared graph, and return them by name."""
    observers = {name: make() for name in activation_observers(graph)}
    for node, _, observer in observer_nodes(graph):
        if hasattr(observer, "point"):
            graph.set_submodule(str(node.target), _Watched(observers[observer.point]))
    return observers


def cover_stopped(images: Tensor, keep_indices: Tensor, patch_size: int) -> Tensor:
    """Replace every stopped patch of images [B, C, H, W] by the image's first kept patch.

    The graph embeds whole images and gathers tokens after the embedding. With stopped patches covered like this, no
    observer before the gather sees any values other than those of kept patches.

    Args:
        images: [B, C, H, W].
        keep_indices: int64 [B, K], kept patches, numbered row by row.
        patch_size: side of a patch in pixels.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    patches = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels, patch_size, patch_size)
    stopped = torch.ones(batch, rows * columns, dtype=torch.bool, device=images.device)
    stopped.scatter_(1, keep_indices, False)
    first = patches[torch.arange(batch, device=images.device), keep_indices[:, 0]]
    patches = torch.where(stopped[:, :, None, None, None], first[:, None], patches)
    grid = patches.reshape(batch, rows, columns, channels, patch_size, patch_size).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(batch, channels, height, width)
