"""Order in which training images are read: another at each epoch, and the same after a restart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.units import Unit, split_units

# Smallest number of pieces of row groups per worker, so that each reads images of several groups where that is cheap.
_PIECES_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which images a worker reads, and in what order.

    Attributes:
        batch_size: number of images per step, over all workers.
        seed: seed of the order.
        rank, world_size: rank and number of workers.
        shuffle_buffer: number of images that a worker shuffles together, if they are not in memory.
    """

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    shuffle_buffer: int = 0

    @property
    def own_batch_size(self) -> int:
        """Number of images that the worker reads of a full batch."""
        return len(range(self.rank, self.batch_size, self.world_size))


def streamed_order(share: Share) -> str:
    """Return what the order of streamed images depends on, besides seed and epoch."""
    # Earlier versions divided row groups in another way, which had another name.
    return f"{share.world_size} workers, shuffle buffer {share.shuffle_buffer}, equal shares"


def plan_epoch(num_images: int, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the rows of every batch of an epoch: each row once, in batches of about equal size, up to `batch_size`."""
    order = np.random.default_rng((seed, epoch)).permutation(num_images)
    return np.array_split(order, -(-num_images // batch_size))


def even_sizes(num_images: int, batch_size: int) -> list[int]:
    """Return batch sizes as in `plan_epoch`, but at least 2, which BatchNorm needs.

    A single remaining image is added to another batch, if there is one.
    """
    batches = max(1, min(-(-num_images // batch_size), num_images // 2 if batch_size > 1 else num_images))
    return [len(rows) for rows in np.array_split(np.arange(num_images), batches)]


def share_units(units: Sequence[tuple[int, Unit]], share: Share, *, epoch: int) -> list[tuple[int, Unit]]:
    """Return the units that a worker reads in an epoch, in order; together, the workers read all units.

    Units are permuted, laid end to end, and cut where a worker's rows end. So numbers of rows differ by one at most. A
    row group is fetched by each worker whose rows reach into it, and small ones once for each piece, see `split_units`.

    Args:
        units: units of an `ImageCollection`, each with the index of its source.
        share: the worker's share.
        epoch: number of the epoch, which decides the order together with the share's seed.
    """
    pieces = -(-_PIECES_PER_WORKER * share.world_size // max(1, len(units)))
    split = split_units(units, [min(pieces, unit.num_rows) for _, unit in units])
    order = np.random.default_rng((share.seed, epoch)).permutation(len(split))
    num_rows = sum(unit.num_rows for _, unit in split)
    start, stop = (num_rows * rank // share.world_size for rank in (share.rank, share.rank + 1))
    return _cut([split[index] for index in order], start, stop)


def _cut(units: Iterable[tuple[int, Unit]], start: int, stop: int) -> list[tuple[int, Unit]]:
    """Return rows `start` to `stop` of units that are laid end to end."""
    cut: list[tuple[int, Unit]] = []
    begin = 0
    for number, unit in units:
        first, last = max(start - begin, 0), min(stop - begin, unit.num_rows)
        if first == 0 and last == unit.num_rows:
            cut.append((number, unit))
        elif first < last:
            cut.append((number, unit.select(range(first, last))))
        begin += unit.num_rows
    return cut
