"""Compile the heavy parts of a step, with few graphs for many batch sizes."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.vit.last_block import pad_rows

# Phases of a schedule times halvings of a batch. PyTorch's own limit of 8 is meant for shapes that vary by mistake.
_MAX_GRAPHS = 256


class Compiled:
    """A function of rows as `torch.compile` makes it: on CUDA one launch of a CUDA graph, on a CPU fused loops.

    It is called with fewer rows than at first where memory runs out or images leave the batch. They are padded to the
    first number, its half, its quarter and so on, so that a batch that shrinks image by image meets few new graphs.

    Shapes alone decide whether a graph fits: one made in an earlier inversion of the process is found again.

    Args:
        function: of `leading` and tensors of the same length; returns one row for each of theirs.
        leading: arguments passed on as they are.
        device: that it runs on.
        max_rows: it is not called with more. None pads nothing, for functions whose rows depend on each other.
        backend: of `torch.compile`; `aot_eager` finds the same graphs and makes no code of them.

    Attributes:
        max_rows: as given; it may be changed between calls.
        compile_s: seconds spent in calls whose shapes were new to this object. Nearly all of it is compiling.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *leading: Any,
        device: torch.device,
        max_rows: int | None,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        # No copies into static addresses are made here: CUDA graphs copy what they are called with by themselves, and
        # pixels are a small part of a step. Pixels with an address of their own would cost a graph for each inversion.
        mode = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
        self._function: Callable[..., Tensor] = torch.compile(
            function, fullgraph=True, dynamic=False, backend=backend, mode=mode
        )
        self._leading = leading
        self.max_rows = max_rows
        self._met: set[tuple[torch.Size, ...]] = set()
        self.compile_s = 0.0

    def __call__(self, *rows: Tensor) -> Tensor:
        count = len(rows[0])
        if self.max_rows is not None:
            assert count <= self.max_rows, f"{count} rows, at most {self.max_rows} were announced"
            size = padded_size(count, self.max_rows)
            rows = tuple(pad_rows(tensor, size) for tensor in rows)
        # One draw of jitter for the batch has no stride, its padded copy has: that would be two graphs.
        rows = tuple(_own_gradient(tensor.contiguous()) for tensor in rows)
        shapes = tuple(tensor.shape for tensor in rows)
        started = time.perf_counter()
        with torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS):  # type: ignore[attr-defined]
            result = self._function(*self._leading, *rows)
        if shapes not in self._met:
            self._met.add(shapes)
            self.compile_s += time.perf_counter() - started
        # A CUDA graph's next run writes over what this one returned.
        return result.clone() if self.max_rows is None else result[:count].clone()


def _own_gradient(rows: Tensor) -> Tensor:
    return _OwnGradient.apply(rows) if rows.requires_grad else rows  # type: ignore[no-any-return]


class _OwnGradient(torch.autograd.Function):
    """The same rows, whose gradient comes back in memory of its own.

    A CUDA graph returns gradients where its next run writes over them, and a leaf keeps the first it gets as it is.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()


def padded_size(count: int, largest: int) -> int:
    """Return the smallest of `largest`, its half, its quarter, ..., each rounded up, that holds `count`."""
    size = largest
    while size > 1 and (size + 1) // 2 >= count:
        size = (size + 1) // 2
    return size
