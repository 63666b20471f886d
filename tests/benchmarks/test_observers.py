"""The comparison of observers."""

import torch

from benchmarks.observers import OBSERVERS, WIDTHS, ranges_of
from pipeline.quantization.observers import HistogramObserver


def test_all_observers_take_what_was_counted_once() -> None:
    counted = HistogramObserver()
    counted.update(torch.randn(20_000, generator=torch.Generator().manual_seed(0)).pow(3))
    for name in OBSERVERS:
        ranges = ranges_of(name, {"head:input": counted})
        assert set(ranges) == {bits.activations for bits in WIDTHS}
        low, high = ranges[4]["head:input"]
        assert (counted.low < low < high < counted.high) == (name not in ("min_max", "percentile 99.999"))
