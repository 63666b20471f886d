from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from pipeline.dataset.units import RowRange, Unit, split_units
from pipeline.distillation.batches import to_batch
from pipeline.distillation.images import MemoryImages, rebatch
from pipeline.distillation.order import Share, even_sizes, plan_epoch, share_units
from tests.distillation.conftest import kept_patches, make_images

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (7, 3), (8, 4), (201, 64)])
def test_an_epoch_reads_every_image_once_in_batches_of_about_equal_size(count: int, batch_size: int) -> None:
    batches = plan_epoch(count, batch_size, seed=0, epoch=3)
    assert sorted(np.concatenate(batches)) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_epochs_and_seeds_have_their_own_orders() -> None:
    orders = [
        tuple(np.concatenate(plan_epoch(50, 8, seed=seed, epoch=epoch))) for seed in (0, 1) for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == 6
    assert orders[1] == tuple(np.concatenate(plan_epoch(50, 8, seed=0, epoch=1)))


def test_neighbors_in_the_source_are_spread_over_an_epoch() -> None:
    # Parts are sorted by class: 10 classes of 20 images.
    first = plan_epoch(200, 20, seed=0, epoch=0)[0] // 20
    assert len(set(first)) >= 6


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_share_every_batch(world_size: int) -> None:
    def ids_of_batches(rank: int, world_size: int) -> list[list[str]]:
        share = MemoryImages(make_images(7), Share(batch_size=3, seed=0, rank=rank, world_size=world_size))
        return [batch.image_ids for batch in share.batches(1, CPU)]

    shares = [ids_of_batches(rank, world_size) for rank in range(world_size)]
    together = [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert together == [sorted(ids) for ids in ids_of_batches(0, 1)]


def test_more_workers_than_images() -> None:
    images = make_images(2)
    parts = [
        list(MemoryImages(images, Share(batch_size=8, seed=0, rank=rank, world_size=3)).batches(0, CPU))
        for rank in range(3)
    ]
    assert [len(part[0].image_ids) for part in parts] == [1, 1, 0]


def row_groups(sizes: list[int]) -> list[tuple[int, Unit]]:
    starts = np.cumsum([0, *sizes])
    return [
        (0, RowRange("file", "file", group, int(start), 0, size, 1))
        for group, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[1], [7], [5, 5, 1], [3] * 40])
def test_workers_share_row_groups(world_size: int, sizes: list[int]) -> None:
    units = row_groups(sizes)
    rows = [
        unit.first_row + row
        for rank in range(world_size)
        for _, unit in share_units(units, Share(batch_size=1, seed=0, rank=rank, world_size=world_size), epoch=2)
        if isinstance(unit, RowRange)
        for row in range(unit.start, unit.stop)
    ]
    assert sorted(rows) == list(range(sum(sizes)))


@pytest.mark.parametrize(
    ("sizes", "world_size"), [([1000] * 9, 8), ([128] * 20, 16), ([8192], 8), ([5, 5, 1], 3), ([3], 5), ([7, 300], 4)]
)
@pytest.mark.parametrize("group_bytes", [1, 2**30])
def test_shares_of_workers_differ_by_one_image_at_most(sizes: list[int], world_size: int, group_bytes: int) -> None:
    """Shares that differed by up to a whole row group let the other workers take steps without an image."""
    units: list[tuple[int, Unit]] = [(0, replace(unit, size=group_bytes)) for _, unit in row_groups(sizes)]
    shares = [
        share_units(units, Share(batch_size=1, seed=0, rank=rank, world_size=world_size), epoch=3)
        for rank in range(world_size)
    ]
    rows = [sum(unit.num_rows for _, unit in share) for share in shares]
    assert sum(rows) == sum(sizes)
    assert max(rows) - min(rows) <= 1
    if group_bytes > 1:
        # Each cut between two workers makes one group be fetched twice.
        assert sum(map(len, shares)) <= len(sizes) + world_size - 1


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_large_row_group_is_fetched_once_by_each_worker(world_size: int) -> None:
    """Each of 32 pieces fetched all of it, at every epoch."""
    unit = RowRange("file", "file", 0, 0, 0, 8192, 49 * 2**20)
    shares = [
        share_units([(0, unit)], Share(batch_size=1, seed=0, rank=rank, world_size=world_size), epoch=2)
        for rank in range(world_size)
    ]
    assert [len(share) for share in shares] == [1] * world_size
    for share in shares:
        assert split_units(share, [32 // world_size]) == share
    # Of a small one that is cheap.
    small = replace(unit, size=2**20)
    assert sum(piece.num_rows for _, piece in split_units([(0, small)], [32])) == 8192
    assert len(split_units([(0, small)], [32])) == 32


def test_row_groups_come_in_another_order_at_each_epoch() -> None:
    units = row_groups([2] * 30)
    first, second = (share_units(units, Share(batch_size=1, seed=0), epoch=epoch) for epoch in (0, 1))
    assert first != second
    assert first != units


def test_groups_hold_images_that_keep_equally_many_patches() -> None:
    batch = to_batch(make_images(8), CPU)
    groups = list(batch.groups())
    assert [keep.shape for _, keep in groups] == [(2, 4), (4, 7), (2, 16)]
    for places, keep in groups:
        assert keep.tolist() == [kept_patches(row) for row in places.tolist()]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(65, 64, [33, 32]), (128, 64, [64, 64]), (3, 2, [3]), (5, 2, [3, 2]), (3, 1, [1, 1, 1]), (1, 4, [1])],
)
def test_no_batch_is_left_with_one_image_where_images_are_read_anew(
    count: int, batch_size: int, sizes: list[int]
) -> None:
    assert even_sizes(count, batch_size) == sizes


@pytest.mark.parametrize("portions", [[1] * 7, [7], [3, 0, 4], [6, 1]])
def test_portions_of_any_size_become_even_batches(portions: list[int]) -> None:
    images = make_images(7)
    starts = np.cumsum([0, *portions])
    parts = [images.take(np.arange(start, start + size)) for start, size in zip(starts, portions, strict=False)]
    batches = list(rebatch(parts, [3, 2, 2]))
    assert [len(batch) for batch in batches] == [3, 2, 2]
    assert [name for batch in batches for name in batch.image_ids] == images.image_ids
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in batches]), images.pixels)
    kept = [row[:count].tolist() for b in batches for row, count in zip(b.keep_indices, b.num_kept, strict=True)]
    assert kept == [row[:count].tolist() for row, count in zip(images.keep_indices, images.num_kept, strict=True)]


def test_images_beyond_the_planned_batches_are_not_dropped() -> None:
    batches = list(rebatch([make_images(4), make_images(3)], [2, 2]))
    assert [len(batch) for batch in batches] == [2, 2, 3]
