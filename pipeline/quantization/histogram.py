"""Histograms of activations that merge exactly: whole counts, in bins whose widths are powers of two."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Largest number of bins: 32 to 64 for each quantized value of 8 bits.
MAX_BINS = 2**14
# The width of the bins of values that are all zero, or so small that float32 has no scale for them.
_SMALLEST_EXPONENT = -100


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each bin.

    Bin number k holds the values from k to k + 1 bin widths, so that zero is always a border, and neighbors make a bin
    of twice the width. The width is the smallest power of two with which at most `MAX_BINS` bins reach from the
    smallest value, or zero, to the largest, or zero. It depends on the values alone, and not on the order in which they
    are counted or parts of them are merged.

    Attributes:
        exponent: exponent of the width of a bin, which is 2^exponent.
        first: number of the first bin; bin k begins at k bin widths.
        counts: int64 [bins], number of values in each bin.
    """

    exponent: int
    first: int
    counts: np.ndarray

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent

    @property
    def borders(self) -> np.ndarray:
        """Borders of the bins, float64 [bins + 1]."""
        return np.arange(self.first, self.first + len(self.counts) + 1) * self.width

    @property
    def centers(self) -> np.ndarray:
        """Middles of the bins, float64 [bins]."""
        return self.borders[:-1] + self.width / 2


def count_values(values: Tensor) -> Histogram:
    """Count the values of a tensor, which must be finite."""
    values = values.detach().float().flatten()
    low, high = (float(bound) for bound in values.aminmax())
    low, high = min(low, 0.0), max(high, 0.0)
    exponent = _smallest_exponent(low, high)
    width = 2.0**exponent
    first, last = math.floor(low / width), math.floor(high / width)
    # Exact: a division by a power of two only changes the exponent.
    bins = torch.floor(values / width).int() - first
    return Histogram(exponent, first, torch.bincount(bins, minlength=last - first + 1).cpu().numpy())


def merge_histograms(one: Histogram, other: Histogram) -> Histogram:
    """Return the histogram of the values of both, the same as if they had been counted together."""
    exponent = max(one.exponent, other.exponent)
    while True:
        parts = [_widen(part, exponent) for part in (one, other)]
        first = min(part.first for part in parts)
        length = max(part.first + len(part.counts) for part in parts) - first
        if length <= MAX_BINS:
            break
        exponent += 1
    counts = np.zeros(length, np.int64)
    for part in parts:
        counts[part.first - first :][: len(part.counts)] += part.counts
    return Histogram(exponent, first, counts)


def _smallest_exponent(low: float, high: float) -> int:
    if high == low:
        return _SMALLEST_EXPONENT
    _, exponent = math.frexp(high - low)
    # The search starts at a width that surely gives too many bins.
    exponent = max(exponent - int(math.log2(MAX_BINS)) - 1, _SMALLEST_EXPONENT)
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= MAX_BINS:
        exponent += 1
    return exponent


def _widen(histogram: Histogram, exponent: int) -> Histogram:
    """Return a histogram with wider bins."""
    doublings = min(exponent - histogram.exponent, 63)
    if doublings == 0:
        return histogram
    first = histogram.first >> doublings
    bins = ((histogram.first + np.arange(len(histogram.counts))) >> doublings) - first
    counts = np.zeros(bins[-1] + 1, np.int64)
    np.add.at(counts, bins, histogram.counts)
    return Histogram(exponent, first, counts)
