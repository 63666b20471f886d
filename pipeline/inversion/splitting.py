"""How many images go through the teacher together, so that a step needs no more memory than there is."""

from itertools import pairwise


class Split:
    """A batch in parts of equal size, or one image apart.

    Args:
        most: images of one part, at most.

    Attributes:
        fewest: the smallest that `most` has been.
        ran_out: whether memory ever did.
    """

    def __init__(self, most: int) -> None:
        self.most = self.fewest = most
        self.ran_out = False

    def size(self, count: int) -> int:
        """Of the largest part of a batch of `count` images."""
        return -(-count // self._num_parts(count))

    def slices(self, count: int) -> list[slice]:
        """The parts of a batch of `count` images."""
        num_parts = self._num_parts(count)
        bounds = [count * part // num_parts for part in range(num_parts + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def _num_parts(self, count: int) -> int:
        return max(1, -(-count // self.most))

    def halve(self, count: int) -> None:
        """After memory ran out for a batch of `count` images."""
        self.most = (self.size(count) + 1) // 2
        self.fewest = min(self.fewest, self.most)
        self.ran_out = True

    def grow(self, before: int, after: int) -> None:
        """After an image has come down from `before` tokens to `after`: as many tokens as before go together."""
        self.most = self.most * before // after
