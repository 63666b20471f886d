"""Activation ranges: compare and check them."""

import math
from collections.abc import Iterable, Mapping

from pipeline.errors import DatasetError, first_few
from pipeline.log import logger

# Name of an activation observer → its range. If it saw no value, the range that it saw is (inf, -inf).
Ranges = dict[str, tuple[float, float]]


def check_observed_ranges(ranges: Ranges) -> None:
    """Refuse ranges from which no scale can be computed.

    Raises:
        DatasetError: an observer saw nothing, or a value that is not finite.
    """
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise DatasetError(f"activations at {name!r} have no finite range: {low} to {high}")


def tell_constant(uri: str, reference: Ranges) -> None:
    """Say which activations of a reference are not compared: those behind a ReLU that no image passes, for example.

    Raises:
        DatasetError: no activation can be compared.
    """
    constant = [name for name, (low, high) in reference.items() if low == high]
    if len(constant) == len(reference):
        raise DatasetError(
            f"reference {uri!r}: all {len(constant)} activations are constant there, and there is no range to compare "
            "with: give one of other images, or leave reference out"
        )
    if constant:
        logger.warning(
            f"reference {uri!r}: {len(constant)} of {len(reference)} activations are constant there, and are left out "
            f"of the comparison ({first_few(constant)})"
        )


def range_error(ranges: Mapping[str, Iterable[float]], reference: Mapping[str, Iterable[float]]) -> float:
    """Return the distance of ranges from those of real images: mean of (|Δmin| + |Δmax|) / reference range.

    Activations that are constant on real images have no range to divide by, and are left out.

    Args:
        ranges: (min, max) by observer, as in `ranges.json`.
        reference: ranges of the same observers on real images.

    Raises:
        DatasetError: the observers differ, or no reference range is left.
    """
    errors = range_errors(ranges, reference)
    return sum(errors.values()) / len(errors)


def range_errors(ranges: Mapping[str, Iterable[float]], reference: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Return the distance of each observer's range, as in `range_error`; those constant in the reference are left out.

    Raises:
        DatasetError: as `range_error`.
    """
    if ranges.keys() != reference.keys() or not reference:
        raise DatasetError(f"ranges of different observers: {sorted(ranges.keys() ^ reference.keys())[:3]}")
    errors = {}
    for name, bounds in reference.items():
        (low, high), (other_low, other_high) = bounds, ranges[name]
        if high < low:
            raise DatasetError(f"the reference range of {name!r} is empty: {low} to {high}")
        if high > low:
            errors[name] = (abs(other_low - low) + abs(other_high - high)) / (high - low)
    if not errors:
        raise DatasetError(f"all {len(reference)} activations are constant in the reference: there is no range")
    return errors
