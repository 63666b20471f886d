"""Find the range of values to quantize that loses least, trading finer steps for clipped values."""

import numpy as np

from pipeline.quantization.histogram import MAX_BINS, Histogram

# With fewer bins for each quantized value, the error within a bin, which a histogram cannot tell, would matter.
_LEAST_BINS = 16
# The ends of the first search, as shares of the extremes: 1 to 1/256, half an octave apart.
_COARSE = 2.0 ** -np.linspace(0, 8, 17)
# Factors of the best ends so far, for two finer searches: eight steps between the neighbors in the search before.
_FINER = [2.0 ** np.linspace(-step, step, 9) for step in (1 / 2, 1 / 8)]


def least_squares_range(histogram: Histogram, low: float, high: float, bits: int) -> tuple[float, float]:
    """Return the range with the least mean squared error of quantization.

    It is sought among ranges whose ends are shares of the extremes, down to 1/256 of each. The extremes themselves are
    among them, and are returned for more than 10 bits, where the histogram is too coarse.

    Args:
        histogram: histogram of the values.
        low, high: smallest and largest value.
        bits: number of bits of the quantized values. They are asymmetric, and zero is one of them.
    """
    if 2**bits * _LEAST_BINS > MAX_BINS:
        return low, high
    best = low, high
    for shares in (_COARSE, *_FINER):
        lows, highs = (grid.ravel() for grid in np.meshgrid(best[0] * shares, best[1] * shares, indexing="ij"))
        # The best range so far comes first, so that it wins where others are no better.
        lows, highs = np.append(best[0], np.maximum(lows, low)), np.append(best[1], np.minimum(highs, high))
        chosen = int(np.argmin(squared_errors(histogram, lows, highs, bits)))
        best = float(lows[chosen]), float(highs[chosen])
    return best


def squared_errors(histogram: Histogram, lows: np.ndarray, highs: np.ndarray, bits: int) -> np.ndarray:
    """Return the sum of the squared errors of quantization for each of M ranges, float64 [M].

    Values count as if they lay in the middles of their bins. Scales and zero points are computed as torchao's
    `MinMaxObserver` does. The time does not depend on the number of bins: sums over the values that are rounded to the
    same level are differences of cumulative sums.

    Args:
        histogram: histogram of the values.
        lows, highs: lower and upper ends of the ranges, float64 [M].
        bits: number of bits of the quantized values.
    """
    largest = 2**bits - 1
    lows, highs = np.minimum(lows, 0), np.maximum(highs, 0)
    scales = np.maximum(highs - lows, np.finfo(np.float64).tiny) / largest
    zero_points = np.clip(-np.round(lows / scales), 0, largest)
    levels = (np.arange(largest + 1) - zero_points[:, None]) * scales[:, None]
    borders = levels[:, :-1] + scales[:, None] / 2
    # Number of bins whose middle lies below each border.
    bins = np.ceil(borders / histogram.width - histogram.first - 0.5)
    bins = np.clip(bins, 0, len(histogram.counts)).astype(np.int64)
    counts, centers = histogram.counts.astype(np.float64), histogram.centers
    number, total = (_sums_of_parts(values, bins) for values in (counts, counts * centers))
    return (counts * centers**2).sum() + (levels**2 * number - 2 * levels * total).sum(axis=1)


def _sums_of_parts(values: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Return sums of consecutive values, [M, parts], cut at borders [M, parts - 1]."""
    sums = np.concatenate([[0.0], values.cumsum()])
    ends = np.full((len(borders), 1), len(values))
    return np.diff(sums[np.concatenate([0 * ends, borders, ends], axis=1)], axis=1)
