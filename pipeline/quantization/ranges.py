"""Activation ranges: compare and check them."""

import math
from collections.abc import Iterable, Mapping

from pipeline.errors import DatasetError

# Name of an activation observer → its range; where it stands for what was seen, (inf, -inf) if that is nothing.
Ranges = dict[str, tuple[float, float]]


def check_observed_ranges(ranges: Ranges) -> None:
    """Refuse ranges from which no scale can be computed.

    Raises:
        DatasetError: an observer saw nothing, or a value that is not finite.
    """
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise DatasetError(f"activations at {name!r} have no finite range: {low} to {high}")


def range_error(ranges: Mapping[str, Iterable[float]], reference: Mapping[str, Iterable[float]]) -> float:
    """Return the distance of ranges from those of real images: mean of (|Δmin| + |Δmax|) / reference range.

    Args:
        ranges: (min, max) by observer, as in `ranges.json`.
        reference: ranges of the same observers on real images.

    Raises:
        DatasetError: the observers differ, or a reference range is empty.
    """
    errors = range_errors(ranges, reference)
    return sum(errors.values()) / len(errors)


def range_errors(ranges: Mapping[str, Iterable[float]], reference: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Return the distance of each observer's range, as `range_error`.

    Raises:
        DatasetError: as `range_error`.
    """
    if ranges.keys() != reference.keys() or not reference:
        raise DatasetError(f"ranges of different observers: {sorted(ranges.keys() ^ reference.keys())[:3]}")
    errors = {}
    for name, bounds in reference.items():
        (low, high), (other_low, other_high) = bounds, ranges[name]
        if high <= low:
            raise DatasetError(f"the reference range of {name!r} is empty: {low} to {high}")
        errors[name] = (abs(other_low - low) + abs(other_high - high)) / (high - low)
    return errors
