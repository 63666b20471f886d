"""Patch Rebirth: several sparse images from one run."""

import pytest
import torch

from pipeline.errors import NonFiniteError
from pipeline.inversion import Inversion, InversionConfig, Teacher, invert, score
from tests.conftest import make_tiny_model

TARGETS = torch.tensor([3, 1, 4])
SEEDS = [10, 11, 12]


def config(factor: int, **changes: object) -> InversionConfig:
    return InversionConfig(**{"iterations": 20 * factor, "lr": 0.1, "rebirth": factor, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [2, 4, 7])
def test_the_images_of_a_run_share_out_its_patches(tiny_teacher: Teacher, factor: int) -> None:
    result = invert(tiny_teacher, TARGETS, config(factor), seeds=SEEDS)
    assert len(result.harvests) == factor
    kept = torch.cat([harvest.keep_indices for harvest in result.harvests], dim=1)
    assert torch.equal(kept.sort(dim=1).values, torch.arange(16).expand(3, -1))
    sizes = [harvest.keep_indices.shape[1] for harvest in result.harvests]
    assert max(sizes) - min(sizes) <= 1


def test_the_best_patches_leave_and_their_pixels_are_those_of_that_step(tiny_teacher: Teacher) -> None:
    run = Inversion(tiny_teacher, TARGETS, config(4), seeds=SEEDS)
    for _ in range(19):
        run.step()
    _, scores = tiny_teacher.forward_scores(run.images.detach())
    best = scores.topk(4, dim=1).indices.sort(dim=1).values
    run.step()
    as_detached = run.images.detach().clone()
    while not run.finished:
        run.step()
    first = run.result().harvests[0]
    assert torch.equal(first.keep_indices, best)
    assert torch.equal(first.images, as_detached)
    assert not torch.equal(first.images, run.images)


def test_detached_patches_are_no_longer_read(tiny_teacher: Teacher) -> None:
    seen: list[int] = []
    run = Inversion(tiny_teacher, TARGETS, config(4), seeds=SEEDS)
    run.teacher.model.blocks[0].register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    while not run.finished:
        run.step()
    assert seen == [1 + alive for alive in (16, 12, 8, 4) for _ in range(20)]


def test_iterations_that_do_not_divide_are_not_run(tiny_teacher: Teacher) -> None:
    result = invert(tiny_teacher, TARGETS, config(3, iterations=50), seeds=SEEDS)
    assert result.losses["class_loss"].shape == (48,)
    assert result.num_steps.tolist() == [48] * 3


def test_every_image_shows_the_teacher_its_class(tiny_teacher: Teacher) -> None:
    result = invert(tiny_teacher, TARGETS, config(2, jitter=0.0, flip=0.0), seeds=SEEDS)
    for harvest in result.harvests:
        pixels = tiny_teacher.to_uint8(harvest.images)
        assert score(tiny_teacher, pixels, harvest.keep_indices, TARGETS)[2].tolist() == TARGETS.tolist()


def test_splits_and_neighbors_change_nothing() -> None:
    teacher = Teacher(make_tiny_model(), mean=(0.5,) * 3, std=(0.5,) * 3)
    whole = invert(teacher, TARGETS, config(4), seeds=SEEDS)
    split = invert(teacher, TARGETS, config(4, micro_batch=2), seeds=SEEDS)
    alone = invert(teacher, TARGETS[1:2], config(4), seeds=SEEDS[1:2])
    for one, other, single in zip(whole.harvests, split.harvests, alone.harvests, strict=True):
        assert torch.equal(one.keep_indices, other.keep_indices)
        assert torch.equal(one.keep_indices[1:2], single.keep_indices)
        assert ((one.images - other.images).abs() <= 1 / 64).float().mean() >= 0.999
        assert ((one.images[1:2] - single.images).abs() <= 1 / 64).float().mean() >= 0.999


def test_a_detached_image_that_is_not_finite_is_reported(tiny_teacher: Teacher) -> None:
    run = Inversion(tiny_teacher, TARGETS, config(2), seeds=SEEDS)
    while not run.finished:
        run.step()
    run._harvests[0].images[1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="pixels"):
        run.result()
