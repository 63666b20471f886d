"""Outliers that are planted for the comparison of observers."""

import torch

from benchmarks.observers import OBSERVERS, WIDTHS, plant_outliers, ranges_of
from pipeline.quantization.observers import HistogramObserver
from tests.conftest import make_tiny_model


def test_planted_outliers_leave_the_function_as_it_was() -> None:
    model, images = make_tiny_model(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = []
    model.blocks[0].norm1.register_forward_hook(lambda _m, _i, output: seen.append(output.abs().amax()))  # type: ignore[union-attr, index]
    with torch.no_grad():
        before = model(images)
        plant_outliers(model)
        torch.testing.assert_close(model(images), before, atol=1e-4, rtol=1e-4)
    assert seen[1] > 3 * seen[0]


def test_all_observers_take_what_was_counted_once() -> None:
    counted = HistogramObserver()
    counted.update(torch.randn(20_000, generator=torch.Generator().manual_seed(0)).pow(3))
    for name in OBSERVERS:
        ranges = ranges_of(name, {"head:input": counted})
        assert set(ranges) == {bits.activations for bits in WIDTHS}
        low, high = ranges[4]["head:input"]
        assert (counted.low < low < high < counted.high) == (name not in ("min_max", "percentile 99.999"))
