"""Activation ranges: merge, compare and check them."""

import math
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist

from pipeline.errors import DatasetError

# Name of an activation observer → smallest and largest value that it saw; (inf, -inf) if it saw nothing.
Ranges = dict[str, tuple[float, float]]


def reduce_ranges(ranges: Ranges, device: torch.device) -> Ranges:
    """Return the ranges over all workers of the default process group; all must call it, with the same names.

    A worker that saw nothing takes part with (inf, -inf), which changes nothing. If a worker saw NaN, the range becomes
    infinite, so that `check_observed_ranges` refuses it: whether a reduction keeps a NaN depends on the order of
    workers.
    """
    # Both as maxima, so that one reduction is enough: min(x) = -max(-x), exactly.
    values = torch.tensor([[-low, high] for low, high in ranges.values()], dtype=torch.float32, device=device)
    values[values.isnan()] = torch.inf
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return {name: (-low, high) for name, (low, high) in zip(ranges, values.tolist(), strict=True)}


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
