import pytest
import torch

from pipeline.inversion.patches import cut_patches, jitter_images, move_patches, split_best

GRID, SIDE = 4, 8


def whole_image_cut(images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Patches [B, K, C, p, p] by slicing, one at a time."""
    rows = []
    for image, places in zip(images, positions.tolist(), strict=True):
        corners = [(place // GRID * SIDE, place % GRID * SIDE) for place in places]
        rows.append(torch.stack([image[:, y : y + SIDE, x : x + SIDE] for y, x in corners]))
    return torch.stack(rows)


def rolled(image: torch.Tensor, dy: int, dx: int, flip: int) -> torch.Tensor:
    moved = torch.roll(image, (dy, dx), dims=(1, 2))
    return moved.flip(2) if flip else moved


JITTERS = [[0, 0, 0], [3, -5, 0], [-4, 4, 1], [12, -31, 1], [8, 16, 0]]


def test_jitter_rolls_then_flips() -> None:
    images = torch.rand(len(JITTERS), 3, 32, 32)
    expected = torch.stack([rolled(image, *jitter) for image, jitter in zip(images, JITTERS, strict=True)])
    assert torch.equal(jitter_images(images, torch.tensor(JITTERS)), expected)


def test_cut_patches_equals_jittering_the_whole_image_and_cutting_it_up() -> None:
    images = torch.rand(len(JITTERS), 3, 32, 32)
    positions = torch.stack([torch.randperm(16)[:5] for _ in JITTERS])
    jitter = torch.tensor(JITTERS)
    cut = cut_patches(images, positions, jitter, patch_size=SIDE)
    assert torch.equal(cut, whole_image_cut(jitter_images(images, jitter), positions))


def test_gradient_reaches_the_pixels_that_were_read_and_no_others() -> None:
    images = torch.rand(1, 1, 32, 32, requires_grad=True)
    cut_patches(images, torch.tensor([[5]]), torch.tensor([[8, 0, 0]]), patch_size=SIDE).sum().backward()
    assert images.grad is not None
    # Position 5 (row 1, column 1) of the image rolled down by one patch shows row 0, column 1.
    expected = torch.zeros(32, 32)
    expected[0:8, 8:16] = 1
    assert torch.equal(images.grad[0, 0], expected)


def test_gradient_is_the_one_of_automatic_differentiation() -> None:
    images = torch.rand(len(JITTERS), 3, 32, 32, requires_grad=True)
    positions = torch.stack([torch.randperm(16)[:5] for _ in JITTERS])
    jitter = torch.tensor(JITTERS)
    weights = torch.rand(len(JITTERS), 5, 3, SIDE, SIDE)
    (written,) = torch.autograd.grad((cut_patches(images, positions, jitter, patch_size=SIDE) * weights).sum(), images)
    rolls = torch.stack([rolled(image, *shift) for image, shift in zip(images, JITTERS, strict=True)])
    (automatic,) = torch.autograd.grad((whole_image_cut(rolls, positions) * weights).sum(), images)
    assert torch.equal(written, automatic)


@pytest.mark.parametrize(
    ("offset", "rows"), [(0, 0), (3, 0), (4, 1), (-4, 0), (-5, -1), (11, 1), (12, 2), (-12, -1), (-13, -2)]
)
def test_patches_move_by_floor_of_offset_over_patch_plus_a_half(offset: int, rows: int) -> None:
    moved = move_patches(torch.tensor([[0]]), torch.tensor([[offset, 0, 0]]), grid_size=GRID, patch_size=SIDE)
    assert moved.item() == rows % GRID * GRID


def test_flip_mirrors_after_the_shift() -> None:
    moved = move_patches(torch.tensor([[4]]), torch.tensor([[0, 8, 1]]), grid_size=GRID, patch_size=SIDE)
    # Row 1, column 0, one to the right: column 1; mirrored in a grid of 4: column 2.
    assert moved.item() == 1 * GRID + 2


def test_survivors_are_the_best_in_ascending_order() -> None:
    keep = torch.tensor([[2, 5, 7, 9]])
    assert [part.tolist() for part in split_best(keep, torch.tensor([[0.1, 0.4, 0.3, 0.2]]), 2)] == [[[5, 7]], [[2, 9]]]


def test_of_equal_scores_the_first_survives() -> None:
    keep = torch.tensor([[2, 5, 7, 9]])
    assert split_best(keep, torch.tensor([[0.2, 0.2, 0.9, 0.2]]), 2)[0].tolist() == [[2, 7]]
