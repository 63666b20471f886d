"""Split a batch into micro-batches that fit in memory."""

from fractions import Fraction
from itertools import pairwise


class MicroBatches:
    """A batch in parts of equal size, or one image apart.

    Args:
        count: images of the batch.
        limit: images of one part, at most.

    Attributes:
        size: images of the largest part; fewer once images have left the batch.
        fewest: the smallest that `size` has been.
    """

    def __init__(self, count: int, limit: int) -> None:
        # Exact, or it would shrink at every stop.
        self._limit = Fraction(limit)
        self.size = self.fewest = _even(count, self._limit)

    def slices(self, count: int) -> list[slice]:
        """The parts of what is left of the batch, `count` images."""
        num_parts = max(1, -(-count // self.size))
        bounds = [count * part // num_parts for part in range(num_parts + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def halve(self) -> None:
        """After memory ran out."""
        self.size = (self.size + 1) // 2
        self._limit = Fraction(self.size)
        self.fewest = min(self.fewest, self.size)

    def grow(self, count: int, before: int, after: int) -> None:
        """After an image has come down from `before` tokens to `after`: as many tokens as before go together."""
        self._limit *= Fraction(before, after)
        self.size = _even(count, self._limit)


def _even(count: int, limit: Fraction) -> int:
    """Images of the largest part."""
    num_parts = max(1, -(-count // int(limit)))
    return -(-count // num_parts)
