"""Measure the cells of a benchmark in processes of one thread, several at a time."""

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    Attributes:
        name: of what is measured, in the line about it.
        seed: with which.
        measure: returns the figures; can be pickled.
    """

    name: str
    seed: int
    measure: Callable[[], Any]


def measure_cells(benchmark: str, waves: Iterable[Sequence[Cell]], num_processes: int) -> dict[tuple[str, int], Any]:
    """Measure all cells, and print a line on standard error for each.

    Args:
        benchmark: its name, with which the lines begin.
        waves: a wave begins when all cells of the one before it are measured.
        num_processes: how many run at a time.

    Returns:
        The figures of each cell by its name and seed, in the order of the cells.
    """
    found: dict[tuple[str, int], Any] = {}
    # Fresh processes: one that has run torch's threads cannot be forked safely.
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for cells in waves:
            futures = [pool.submit(_measure, cell) for cell in cells]
            for cell, future in zip(cells, futures, strict=True):
                figures = found[cell.name, cell.seed] = future.result()
                print(f"{benchmark}: {cell.name}, seed {cell.seed}: {figures}", file=sys.stderr, flush=True)
    return found


def _measure(cell: Cell) -> Any:
    torch.set_num_threads(1)
    return cell.measure()
