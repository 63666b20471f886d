"""Adaptive end: images that need no further steps leave their batch."""

from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.inversion import AdaptiveEnd, Inversion, InversionConfig, InversionResult, Teacher, invert
from pipeline.inversion.ending import ConfidenceTracker
from tests.conftest import HALF, make_tiny_model

TARGETS = torch.tensor([3, 1, 4, 1, 5])
SEEDS = [10, 11, 12, 13, 14]
# Small shifts: an untrained teacher sees another class in large ones.
LONG: dict[str, Any] = {
    "iterations": 300,
    "lr": 0.1,
    "jitter": 0.05,
    "flip": 0.0,
    "stop_steps": [5, 10],
    "stop_fractions": [0.5, 0.25],
}
END = AdaptiveEnd(confidence=0.8, hold_steps=10)


@pytest.fixture(scope="module")
def whole() -> InversionResult:
    """One batch of the tiny teacher, which ends image by image."""
    teacher = Teacher(make_tiny_model(), mean=HALF, std=HALF)
    return invert(teacher, TARGETS, InversionConfig(**LONG, adaptive_end=END), seeds=SEEDS)


def make_ending(**changes: int) -> ConfidenceTracker:
    sizes = {"first_step": 2, "num_steps": 20, "batch": 2, **changes}
    return ConfidenceTracker(AdaptiveEnd(confidence=0.5, hold_steps=4), **sizes, device=torch.device("cpu"))


def losses(*confidences: float) -> torch.Tensor:
    return -torch.tensor(confidences).log()


def test_confidence_has_to_hold_up_to_a_still_step() -> None:
    ending = make_ending()
    assert list(ending.still_steps) == [5, 9, 13, 17]
    reported = {step: ending.watch(step, losses(0.9, 0.4 if step == 4 else 0.9)) for step in range(10)}
    assert {step for step, ended in reported.items() if ended is not None} == {5, 9}
    assert reported[5] is not None
    assert reported[9] is not None
    assert reported[5].tolist() == [True, False]
    assert reported[9].tolist() == [True, True]


def test_steps_before_the_last_stop_do_not_count() -> None:
    ending = make_ending(first_step=4)
    reported = [ending.watch(step, losses(0.9 if step < 4 else 0.1, 0.9)) for step in range(8)]
    assert reported[7] is not None
    assert reported[7].tolist() == [False, True]


def test_counts_follow_their_images() -> None:
    ending = make_ending()
    for step in range(2, 5):
        ending.watch(step, losses(0.1, 0.9))
    ending.keep(torch.tensor([1]))
    ended = ending.watch(5, losses(0.9))
    assert ended is not None
    assert ended.tolist() == [True]


def test_an_image_that_ended_is_that_of_a_run_as_long(tiny_teacher: Teacher, whole: InversionResult) -> None:
    """Leaving the batch changes neither the image that leaves nor those that stay."""
    steps = whole.num_steps.tolist()
    assert len(set(steps)) > 1
    assert min(steps) < 300
    for row in (steps.index(min(steps)), steps.index(max(steps))):
        run = Inversion(
            tiny_teacher, TARGETS[row : row + 1], InversionConfig(**LONG, adaptive_end=END), seeds=[SEEDS[row]]
        )
        while not run.finished:
            run.step()
        alone = run.result()
        assert alone.num_steps.tolist() == [steps[row]]
        assert torch.equal(alone.keep_indices[0], whole.keep_indices[row])
        assert ((alone.images[0] - whole.images[row]).abs() <= 1 / 64).float().mean() >= 0.999


def test_the_teacher_is_sure_of_what_ended(tiny_teacher: Teacher) -> None:
    run = Inversion(tiny_teacher, TARGETS, InversionConfig(**LONG, adaptive_end=END), seeds=SEEDS)
    shown: list[int] = []
    while not run.finished:
        shown.append(len(run.images))
        run.step()
    result = run.result()
    # What is done no longer costs anything.
    assert shown[0] == 5
    assert shown[-1] < 5
    assert sum(shown) == int(result.num_steps.sum())
    ended = result.num_steps < 300
    logits = tiny_teacher(result.images, result.keep_indices)
    confidence = logits.softmax(dim=1)[torch.arange(5), TARGETS]
    assert (confidence[ended] > 0.75).all()


def test_a_run_that_all_images_leave_is_finished(tiny_teacher: Teacher) -> None:
    easy = InversionConfig(**LONG, adaptive_end=AdaptiveEnd(confidence=0.01, hold_steps=5))
    run = Inversion(tiny_teacher, TARGETS, easy, seeds=SEEDS)
    while not run.finished:
        run.step()
    result = run.result()
    assert int(result.num_steps.max()) < 300
    assert len(result.losses["class_loss"]) == int(result.num_steps.max())
    assert result.images.shape == (5, 3, 32, 32)
    assert result.keep_indices.shape == (5, 6)


def test_a_micro_batch_does_not_change_who_ends_when(tiny_teacher: Teacher, whole: InversionResult) -> None:
    split = invert(tiny_teacher, TARGETS, InversionConfig(**LONG, adaptive_end=END, micro_batch=2), seeds=SEEDS)
    assert torch.equal(whole.num_steps, split.num_steps)
    assert ((whole.images - split.images).abs() <= 1 / 64).float().mean() >= 0.999


def test_with_rebirth_only_the_last_image_ends_early(tiny_teacher: Teacher) -> None:
    easy = AdaptiveEnd(confidence=0.01, hold_steps=5)
    result = invert(
        tiny_teacher, TARGETS, InversionConfig(iterations=90, lr=0.1, rebirth=3, adaptive_end=easy), seeds=SEEDS
    )
    assert [len(harvest.images) for harvest in result.harvests] == [5, 5, 5]
    assert (result.num_steps > 60).all()
    assert int(result.num_steps.max()) < 90


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 0.0}, r"confidence must lie in \(0, 1\), not 0.0"),
        ({"confidence": 1.0}, r"confidence must lie in \(0, 1\), not 1.0"),
        ({"hold_steps": 1}, "hold_steps must be at least 2, not 1"),
    ],
)
def test_impossible_ends_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdaptiveEnd(**settings)


def test_an_end_that_can_never_come_is_refused() -> None:
    config = InversionConfig(**{**LONG, "iterations": 15}, adaptive_end=END)
    with pytest.raises(ConfigError, match="hold_steps 10: the schedule leaves 5 steps after its last change"):
        config.check(16)


def test_the_image_kept_is_the_one_that_was_judged(tiny_teacher: Teacher) -> None:
    config = InversionConfig(**LONG, adaptive_end=AdaptiveEnd(confidence=0.01, hold_steps=5))
    run = Inversion(tiny_teacher, TARGETS[:1], config, seeds=SEEDS[:1])
    before = run.images.detach().clone()
    while not run.finished:
        before = run.images.detach().clone()
        run.step()
    assert torch.equal(run.result().images, before)


def test_images_that_depend_on_each_other_cannot_leave() -> None:
    with pytest.raises(ConfigError, match="adaptive_end drops images"):
        InversionConfig(**LONG, adaptive_end=END, scope="published")
