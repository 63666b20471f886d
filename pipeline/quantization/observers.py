"""Observers: each remembers the values at one point of a model, and says which range of them is quantized."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, Self

import numpy as np
from torch import Tensor

from pipeline.quantization.clipping import least_squares_range
from pipeline.quantization.histogram import Histogram, count_values, merge_histograms
from pipeline.quantization.ranges import Ranges

ObserverName = Literal["min_max", "percentile", "mse"]
_PERCENTILE = 99.99


class Observer(Protocol):
    """Summary of the values at one point of a model, from which their range follows.

    Merging observers of parts of the images, in any order, must give exactly the observer of all images: so that the
    ranges are the same, bit for bit, for any number of workers. Sums of floats are not exact, counts and extremes are.

    Attributes:
        low, high: smallest and largest value seen; (inf, -inf) before the first one; NaN if any value was NaN.
    """

    low: float
    high: float

    def update(self, values: Tensor) -> None:
        """Take in more values, a tensor of any shape."""
        ...

    def merge(self, other: Self) -> None:
        """Add what another observer of the same settings saw."""
        ...

    def range(self, bits: int) -> tuple[float, float]:
        """Return the range to represent in so many bits, as its two ends; values outside it are clipped."""
        ...


def make_observer(name: ObserverName, percentile: float | None = None) -> Observer:
    """Return a new observer.

    Args:
        name: kind of the observer.
        percentile: share for `Percentile`, in percent, 99.99 by default; other kinds ignore it.
    """
    match name:
        case "min_max":
            return MinMax()
        case "percentile":
            return Percentile(_PERCENTILE if percentile is None else percentile)
        case "mse":
            return MeanSquaredError()


def merge_observers(workers: Sequence[dict[str, Observer]]) -> dict[str, Observer]:
    """Merge the observers of all workers, point by point, into those of the first worker, and return these."""
    merged, *others = workers
    for observers in others:
        for name, observer in merged.items():
            observer.merge(observers[name])
    return merged


def extremes(observers: Mapping[str, Observer]) -> Ranges:
    """Return the smallest and largest value that each observer saw, even if its range is narrower."""
    return {name: (observer.low, observer.high) for name, observer in observers.items()}


def ranges_for(observers: Mapping[str, Observer], activation_bits: int) -> Ranges:
    """Return the range at each point that is represented in so many bits."""
    return {name: observer.range(activation_bits) for name, observer in observers.items()}


class MinMax:
    """Represents all values that were seen."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Tensor) -> None:
        low, high = values.detach().aminmax()
        self._extend(float(low), float(high))

    def merge(self, other: Self) -> None:
        self._extend(other.low, other.high)

    def range(self, bits: int) -> tuple[float, float]:
        return self.low, self.high

    def _extend(self, low: float, high: float) -> None:
        # Unlike `min` and `max` these keep a NaN in any order.
        self.low, self.high = float(np.minimum(self.low, low)), float(np.maximum(self.high, high))


class HistogramObserver(MinMax):
    """Counts the values as well. By itself it represents all of them; its subclasses choose a narrower range.

    Attributes:
        histogram: histogram of the values; None before the first one. Tensors with infinity or NaN are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.histogram: Histogram | None = None

    def update(self, values: Tensor) -> None:
        super().update(values)
        if math.isfinite(self.low) and math.isfinite(self.high):
            self._add(count_values(values))

    def merge(self, other: Self) -> None:
        super().merge(other)
        if other.histogram is not None:
            self._add(other.histogram)

    def _add(self, histogram: Histogram) -> None:
        self.histogram = histogram if self.histogram is None else merge_histograms(self.histogram, histogram)

    def _seen(self, low: float, high: float) -> tuple[float, float]:
        """Cut a range at the extremes, where bins reach beyond them."""
        return max(low, self.low), min(high, self.high)


class Percentile(HistogramObserver):
    """Clips at most a share of the values at each end, rounded down to whole bins.

    Args:
        percentile: the share, in percent, that lies below the upper end of the range, and above its lower end.
    """

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = percentile

    def range(self, bits: int) -> tuple[float, float]:
        if self.histogram is None:
            return self.low, self.high
        below = self.histogram.counts.cumsum()
        total, share = below[-1], self.percentile / 100
        first = int(np.searchsorted(below, (1 - share) * total, side="right"))
        last = int(np.searchsorted(below, share * total))
        borders = self.histogram.borders
        return self._seen(float(borders[min(first, last)]), float(borders[last + 1]))


class MeanSquaredError(HistogramObserver):
    """Chooses the range whose quantized values differ least from the values, in the mean square."""

    def range(self, bits: int) -> tuple[float, float]:
        if self.histogram is None:
            return self.low, self.high
        return self._seen(*least_squares_range(self.histogram, self.low, self.high, bits))
