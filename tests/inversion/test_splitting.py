"""Micro-batches cover the batch evenly, and hold no more tokens than fitted in memory before."""

import pytest

from pipeline.inversion.splitting import MicroBatches


@pytest.mark.parametrize(
    ("count", "limit", "sizes"), [(8, 8, [8]), (7, 3, [2, 2, 3]), (128, 45, [42, 43, 43]), (2, 5, [2])]
)
def test_parts_are_even_and_cover_the_batch(count: int, limit: int, sizes: list[int]) -> None:
    split, rows = MicroBatches(count, limit), list(range(count))
    parts = [rows[part] for part in split.slices(count)]
    assert [row for part in parts for row in part] == rows
    assert [len(part) for part in parts] == sizes
    assert split.size == max(sizes)


def test_fewer_tokens_an_image_are_more_images() -> None:
    split, sizes = MicroBatches(128, 32), []
    for before, after in [(197, 138), (138, 96), (96, 67), (67, 47)]:
        split.grow(128, before, after)
        sizes.append(split.size)
        assert split.size * after <= 32 * 197
    # Of 128 images all at once at the end.
    assert sizes == [43, 64, 64, 128]
    assert split.fewest == 32


def test_a_batch_that_shrinks_has_no_larger_parts() -> None:
    split = MicroBatches(24, 16)
    largest = [max(part.stop - part.start for part in split.slices(count)) for count in range(24, 0, -1)]
    assert max(largest) == split.size == 12


def test_memory_that_runs_out_halves_what_was_tried() -> None:
    split = MicroBatches(5, 5)
    split.halve()
    assert (split.size, split.fewest) == (3, 3)
    split.grow(5, 4, 1)
    # Five were tried of the twelve that there might have been.
    split.halve()
    assert (split.size, split.fewest) == (3, 3)
    split.halve()
    assert (split.size, split.fewest) == (2, 2)
