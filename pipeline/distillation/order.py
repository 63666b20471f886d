"""Order in which training images are read: another at each epoch, and the same after a restart."""

from collections.abc import Sequence

import numpy as np

from pipeline.dataset.units import Unit

# Row groups per worker, so that the workers' shares are about equal and mix.
_UNITS_PER_WORKER = 4


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


def share_of_batch(batch_size: int, *, rank: int, world_size: int) -> int:
    """Return how many images of a full batch a worker reads."""
    return len(range(rank, batch_size, world_size))


def share_units(
    units: Sequence[tuple[int, Unit]], *, seed: int, epoch: int, rank: int, world_size: int
) -> list[tuple[int, Unit]]:
    """Return the units that a worker reads in an epoch, in order; together, the workers read all units.

    Args:
        units: of an `ImageCollection`, each with the index of its source.
        seed, epoch: seeds of the order.
        rank, world_size: rank and number of workers.
    """
    pieces = -(-_UNITS_PER_WORKER * world_size // max(1, len(units)))
    split = [(number, part) for number, unit in units for part in unit.split(min(pieces, unit.num_rows))]
    order = np.random.default_rng((seed, epoch)).permutation(len(split))
    return [split[index] for index in order[rank::world_size]]
