"""Mean and spread of a figure over seeds, in words and as a standard error."""

import statistics
from collections.abc import Sequence


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; infinite for a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("inf")


def spread(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """Return mean ± standard deviation as text, with so many digits; a single value has none to show, 0.

    Args:
        values: one or more.
        digits: after the point.
        signed: whether the mean has its sign, as a difference has.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{'+' if signed else ''}.{digits}f} ± {deviation:.{digits}f}"
