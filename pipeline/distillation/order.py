"""Order in which training images are read: another at each epoch, and the same after a restart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.units import Unit, split_units

# Row groups per worker, so that the workers' shares are about equal and mix.
_UNITS_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which images a worker reads, and in what order.

    Attributes:
        batch_size: images per step, over all workers.
        seed: of the order.
        rank, world_size: rank and number of workers.
        shuffle_buffer: images that a worker shuffles together where they are not in memory.
    """

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    shuffle_buffer: int = 0

    @property
    def own_batch_size(self) -> int:
        """How many images of a full batch the worker reads."""
        return len(range(self.rank, self.batch_size, self.world_size))


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

    Args:
        units: of an `ImageCollection`, each with the index of its source.
        share: of the worker.
        epoch: with the share's seed, it decides the order.
    """
    pieces, fewest = (-(-count * share.world_size // max(1, len(units))) for count in (_UNITS_PER_WORKER, 1))
    split = split_units(units, [min(pieces, unit.num_rows) for _, unit in units], fewest=fewest)
    order = np.random.default_rng((share.seed, epoch)).permutation(len(split))
    return [split[index] for index in order[share.rank :: share.world_size]]
