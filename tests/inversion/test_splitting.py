"""Parts of a batch: all of it, evenly, and as many tokens in each as memory has held before."""

import pytest

from pipeline.inversion.splitting import Split


@pytest.mark.parametrize(
    ("count", "most", "sizes"), [(8, 8, [8]), (7, 3, [2, 2, 3]), (128, 45, [42, 43, 43]), (2, 5, [2])]
)
def test_parts_are_even_and_cover_the_batch(count: int, most: int, sizes: list[int]) -> None:
    split, rows = Split(most), list(range(count))
    parts = [rows[part] for part in split.slices(count)]
    assert [row for part in parts for row in part] == rows
    assert [len(part) for part in parts] == sizes
    assert split.size(count) == max(sizes)


def test_fewer_tokens_an_image_are_more_images() -> None:
    split = Split(32)
    for before, after in [(196, 137), (137, 95), (95, 66), (66, 46)]:
        split.grow(before, after)
        assert split.most * after <= 32 * 196
    # Of 128 images all at once at the end, and what was asked for is known still.
    assert split.size(128) == 128
    assert (split.fewest, split.ran_out) == (32, False)


def test_memory_that_runs_out_halves_what_was_tried() -> None:
    split = Split(5)
    split.halve(5)
    assert (split.most, split.fewest, split.ran_out) == (3, 3, True)
    split.grow(4, 1)
    # Four were tried of the twelve that there might have been.
    split.halve(4)
    assert (split.most, split.fewest) == (2, 2)
