"""Compile the heavy parts of a step, with few graphs for many batch sizes."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.vit.last_block import pad_rows

# Allows for every phase of a schedule at every halving of the batch. PyTorch's default of 8 guards against shapes that
# vary by mistake.
_MAX_GRAPHS = 256


class Compiled:
    """A function of rows, compiled by `torch.compile`: one launch of a CUDA graph on CUDA, fused loops on a CPU.

    The number of rows falls during a run, when memory runs out or images leave the batch. Rows are padded to
    `max_rows`, its half, its quarter and so on, so that a batch that shrinks image by image needs few graphs.

    Graphs are found by shape alone, so one compiled in an earlier inversion of the same process is used again.

    Args:
        function: function of `leading` and then tensors of equal length, which returns one row for each of their rows.
        leading: first arguments of every call, passed unchanged.
        device: the device that the function runs on.
        max_rows: largest number of rows in a call. None disables padding, for functions whose rows depend on each
            other.
        backend: backend of `torch.compile`. `aot_eager` captures the same graphs and generates no code.

    Attributes:
        max_rows: largest number of rows in a call, as above; it may be changed between calls.
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
        # Inputs are not copied to static addresses here: CUDA graphs copy them anyway, and pixels are a small part of a
        # step. Marking the pixels' address as static would record a new graph for every inversion.
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
        # A single draw of jitter, expanded to the batch, has stride 0, and its padded copy does not. Without
        # `contiguous` that would make two graphs.
        rows = tuple(_own_gradient(tensor.contiguous()) for tensor in rows)
        shapes = tuple(tensor.shape for tensor in rows)
        started = time.perf_counter()
        with torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS):  # type: ignore[attr-defined]
            result = self._function(*self._leading, *rows)
        if shapes not in self._met:
            self._met.add(shapes)
            self.compile_s += time.perf_counter() - started
        # The next run of a CUDA graph overwrites what this one returned.
        return result.clone() if self.max_rows is None else result[:count].clone()


def _own_gradient(rows: Tensor) -> Tensor:
    return _OwnGradient.apply(rows) if rows.requires_grad else rows  # type: ignore[no-any-return]


class _OwnGradient(torch.autograd.Function):
    """Identity whose gradient is copied.

    A CUDA graph returns gradients in memory that its next run overwrites, and a leaf's `.grad` keeps the first gradient
    without a copy.
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
