"""Cells of a benchmark, measured in processes of their own."""

from functools import partial

import pytest
import torch

from benchmarks.cells import Cell, measure_cells


def test_cells_are_measured_wave_after_wave_on_one_thread_each(capsys: pytest.CaptureFixture[str]) -> None:
    waves = [[Cell("a", seed, partial(divmod, 7, 2 + seed)) for seed in (0, 1)], [Cell("b", 0, torch.get_num_threads)]]
    found = measure_cells("some", waves, 1)
    assert list(found.items()) == [(("a", 0), (3, 1)), (("a", 1), (2, 1)), (("b", 0), 1)]
    assert capsys.readouterr().err.splitlines() == [
        "some: a, seed 0: (3, 1)",
        "some: a, seed 1: (2, 1)",
        "some: b, seed 0: 1",
    ]
