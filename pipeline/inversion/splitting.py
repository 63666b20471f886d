"""Split a batch into micro-batches that fit in memory."""

from fractions import Fraction
from itertools import pairwise
from typing import Any


class MicroBatches:
    """Micro-batches of a batch, whose sizes differ by one image at most.

    Args:
        count: number of images in the batch.
        limit: largest number of images in a micro-batch.

    Attributes:
        size: number of images in the largest micro-batch. Once images have left the batch, the actual one may be
            smaller.
        fewest: smallest `size` so far.
    """

    def __init__(self, count: int, limit: int) -> None:
        # A fraction: a limit rounded to whole images would shrink at every stop.
        self._limit = Fraction(limit)
        self.size = self.fewest = _even(count, self._limit)

    def slices(self, count: int) -> list[slice]:
        """Return the micro-batches of the `count` images that are left in the batch."""
        num_parts = max(1, -(-count // self.size))
        bounds = [count * part // num_parts for part in range(num_parts + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def halve(self) -> None:
        """Halve the micro-batches, after memory ran out."""
        self.size = (self.size + 1) // 2
        self._limit = Fraction(self.size)
        self.fewest = min(self.fewest, self.size)

    def grow(self, count: int, before: int, after: int) -> None:
        """Enlarge the micro-batches to as many tokens as before, when images shrink from `before` tokens to `after`."""
        self._limit *= Fraction(before, after)
        self.size = _even(count, self._limit)

    def state(self) -> dict[str, Any]:
        """Return what `load_state` takes, as plain data."""
        return {"limit": str(self._limit), "size": self.size, "fewest": self.fewest}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._limit, self.size, self.fewest = Fraction(state["limit"]), state["size"], state["fewest"]


def _even(count: int, limit: Fraction) -> int:
    """Return the size of the largest micro-batch."""
    num_parts = max(1, -(-count // int(limit)))
    return -(-count // num_parts)
