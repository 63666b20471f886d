"""Calibration batches depend only on the dataset, and every image is in exactly one."""

from itertools import chain

import numpy as np
import pytest
import torch

from pipeline.errors import DatasetError
from pipeline.quantization.batches import draw_window, gather_batches, plan_windows, share_windows, spread_window

ROWS = [(f"image-{number:02d}", 3 + number % 3) for number in range(23)]


def test_windows_hold_every_image_once_in_batches_of_equal_numbers_of_patches() -> None:
    windows = plan_windows(ROWS, 8, None, seed=0)
    batches = [batch for window in windows for batch in window.batches]
    assert [window.rows for window in windows] == [list(range(8)), list(range(8, 16)), list(range(16, 23))]
    assert sorted(image_id for batch in batches for image_id in batch) == [image_id for image_id, _ in ROWS]
    kept = dict(ROWS)
    assert all(len({kept[image_id] for image_id in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7])
def test_workers_share_all_windows(num_workers: int) -> None:
    windows = plan_windows(ROWS, 8, None, seed=0)
    shares = share_windows(windows, num_workers)
    assert len(shares) == num_workers
    assert [window for share in shares for window in share] == windows


def test_a_draw_depends_on_ids_and_seed_alone() -> None:
    def drawn(rows: list[tuple[str, int]], seed: int) -> set[str]:
        return {i for window in plan_windows(rows, 4, 6, seed) for batch in window.batches for i in batch}

    assert len(drawn(ROWS, 0)) == 6
    assert drawn(ROWS, 0) == drawn(ROWS[::-1], 0)
    assert drawn(ROWS, 0) != drawn(ROWS, 1)


def test_images_that_are_held_back_are_the_last_that_would_be_drawn() -> None:
    held_back = draw_window(ROWS, 5, seed=0)
    assert held_back.rows == sorted(held_back.rows)
    left = [row for window in plan_windows(ROWS, 8, None, 0, held_back) for row in window.rows]
    assert sorted(left + held_back.rows) == list(range(23))
    drawn = [row for window in plan_windows(ROWS, 8, 18, 0) for row in window.rows]
    assert drawn == left
    assert draw_window(ROWS, 99, seed=0).rows == list(range(23))
    with pytest.raises(DatasetError, match="all 23 images are held back"):
        plan_windows(ROWS, 8, None, 0, draw_window(ROWS, 23, seed=0))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no images"),
        ([("a", 3), ("a", 3)], "image id 'a' comes more than once: if these .* give the URI of each in a list"),
        ([("a", 0)], "image 'a' keeps no patch"),
    ],
)
def test_impossible_datasets_are_refused(rows: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        plan_windows(rows, 8, None, seed=0)


def row(image_id: str, value: float) -> dict[str, object]:
    return {"image_id": image_id, "pixels": np.full((1, 2, 2), value, np.float32), "keep_indices": [0, 1]}


def test_batches_are_the_planned_ones_in_whatever_order_rows_come() -> None:
    rows = [row("d", 4), row("b", 2), row("x", 9), row("a", 1), row("c", 3)]
    batches = list(gather_batches(rows, [["a", "b"], ["c", "d"]]))
    assert sorted(batch.image_ids for batch in batches) == [["a", "b"], ["c", "d"]]
    first = next(batch for batch in batches if batch.image_ids == ["a", "b"])
    assert torch.equal(first.images[:, 0, 0, 0], torch.tensor([1.0, 2.0]))
    assert first.keep_indices.tolist() == [[0, 1], [0, 1]]


def test_an_image_that_does_not_come_is_an_error() -> None:
    with pytest.raises(DatasetError, match="1 images are missing, such as 'b'"):
        list(gather_batches([row("a", 1)], [["a", "b"]]))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rows_to_compare_on_are_spread_over_the_classes_however_they_are_ordered(interleaved: bool) -> None:
    count = 320
    classes = [row % 10 if interleaved else row * 10 // count for row in range(count)]
    index = [(f"image-{row:03d}", 5 + row % 2) for row in range(count)]
    windows = plan_windows(index, 32, None, seed=0)
    drawn = spread_window(index, windows, 32, seed=0)
    rows = drawn.rows
    assert rows == sorted(set(rows))
    assert drawn == spread_window(index, windows, 32, seed=0) != spread_window(index, windows, 32, seed=1)
    assert sorted(chain(*drawn.batches)) == [index[row][0] for row in rows]
    number = [sum(classes[row] == label for row in rows) for label in range(10)]
    assert sum(number) == 32
    # One class after another: each has its share. Mixed: as a random draw.
    assert min(number) >= (0 if interleaved else 2)
    assert sum(own > 0 for own in number) >= 8


def test_of_few_rows_all_are_compared_on() -> None:
    windows = plan_windows(ROWS, 8, None, 0, draw_window(ROWS, 5, seed=0))
    assert spread_window(ROWS, windows, 32, seed=0).rows == [row for window in windows for row in window.rows]
