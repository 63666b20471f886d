"""Arguments that programs pass to the engine: the model, targets, seeds, images and jitter."""

import copy
from typing import Any, cast

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError, ModelError
from pipeline.inversion import (
    AdaptiveEnd,
    Harvest,
    Inversion,
    InversionConfig,
    MaskedTeacher,
    Teacher,
    ViewConfig,
    frozen_copy,
    invert,
    score,
)
from tests.conftest import HALF, make_tiny_model

CONFIG = InversionConfig(iterations=4, lr=0.1, stop_steps=[2], stop_fractions=[0.5])
TARGETS = torch.tensor([3, 1])
NORMAL: dict[str, Any] = {"mean": HALF, "std": HALF}


def images_of(teacher: Teacher, targets: Any = TARGETS, config: InversionConfig = CONFIG, **given: Any) -> torch.Tensor:
    return invert(teacher, targets, config, **{"seeds": [0, 1], **given}).images


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([3, -100]), "target -100 is no class of the teacher, which has 10"),
        (torch.tensor([3, 10]), "target 10 is no class of the teacher, which has 10"),
        (torch.eye(10)[:2], r"targets must be classes, int64 \[B\], not float32 \[2, 10\]"),
        (torch.tensor([3.0, 1.0]), r"int64 \[B\], not float32 \[2\]"),
        (torch.tensor([[3], [1]]), r"int64 \[B\], not int64 \[2, 1\]"),
        (torch.tensor([True, False]), r"int64 \[B\], not bool \[2\]"),
        (torch.tensor([], dtype=torch.int64), r"int64 \[B\], not int64 \[0\]"),
        ([3, 1], r"int64 \[B\], not a list"),
    ],
)
def test_targets_that_are_no_classes_are_refused(tiny_teacher: Teacher, targets: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        images_of(tiny_teacher, targets)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": [0]}, "one seed for each target, not 1 for 2"),
        ({"seeds": [0.0, 1.0]}, "seeds must be whole numbers"),
        ({"seeds": [0, 2**64]}, "a seed must fit 64 bits, not 18446744073709551616"),
        (
            {"init": torch.zeros(1, 3, 32, 32)},
            r"init must be .* float \[2, 3, 32, 32\], not float32 \[1,",
        ),
        ({"init": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, "init must be normalized images, .* not uint8"),
        (
            {"jitter": torch.zeros(3, 2, 3, dtype=torch.int64)},
            r"jitter must be whole .* \[4, 2, 3\], not int64 \[3",
        ),
        ({"jitter": torch.zeros(4, 2, 3)}, "jitter must be whole numbers .* not float32"),
        ({"jitter": torch.full((4, 2, 3), 2)}, "jitter must hold flips of 0 and 1"),
    ],
)
def test_what_does_not_fit_the_targets_is_refused(tiny_teacher: Teacher, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        images_of(tiny_teacher, **given)


def test_equal_arguments_of_other_types_make_the_same_images(tiny_teacher: Teacher) -> None:
    images = images_of(tiny_teacher)
    assert torch.equal(images_of(tiny_teacher, TARGETS.to(torch.int32)), images)
    assert torch.equal(images_of(tiny_teacher, seeds=torch.arange(2).numpy()), images)
    init = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    images = images_of(tiny_teacher, init=init)
    strided = init.to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(images_of(tiny_teacher, init=strided), images)
    assert strided.is_leaf
    assert strided.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_switched_off_are_taken(tiny_teacher: Teacher, mode: Any) -> None:
    images = images_of(tiny_teacher)
    with mode():
        assert torch.equal(images_of(Teacher(tiny_teacher.model, **NORMAL)), images)
        assert not torch.is_grad_enabled()
    run = Inversion(tiny_teacher, TARGETS, CONFIG, seeds=[0, 1])
    with mode():
        run.step()
        state = run.state()
        later = Inversion(tiny_teacher, TARGETS, CONFIG, seeds=[0, 1])
        later.load_state(state)
        while not later.finished:
            later.step()
        assert torch.equal(later.result().images, images)
    while not run.finished:
        run.step()
    assert torch.equal(run.result().images, images)


@pytest.mark.parametrize(
    "changes",
    [
        {"adaptive_end": AdaptiveEnd(confidence=0.15, hold_steps=2)},
        {"stop_steps": [], "stop_fractions": [], "rebirth": 2},
        {"basis": "cosine", "views": ViewConfig(degrees=5.0, scale=0.1, blur=0.5, noise=0.1)},
    ],
)
def test_what_comes_out_in_inference_mode_can_be_trained_on(tiny_teacher: Teacher, changes: dict[str, Any]) -> None:
    config = InversionConfig(**{"iterations": 8, "lr": 0.3, "stop_steps": [2], "stop_fractions": [0.5], **changes})
    own = invert(tiny_teacher, TARGETS, config, seeds=[0, 1])
    with torch.inference_mode():
        run = Inversion(tiny_teacher, TARGETS, config, seeds=[0, 1])
        # Some images have ended by then.
        for _ in range(5):
            run.step()
        state = run.state()
        result = invert(tiny_teacher, TARGETS, config, seeds=[0, 1])
        held = tensors_of([state, run.result().harvests, result.harvests, result.losses, result.num_steps])
    assert len(held) > 10
    assert not any(value.is_inference() for value in held)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    for harvest, expected in zip(result.harvests, own.harvests, strict=True):
        assert torch.equal(harvest.images, expected.images)
        (weight * harvest.images).sum().backward()
    later = Inversion(tiny_teacher, TARGETS, config, seeds=[0, 1])
    later.load_state(state)
    while not later.finished:
        later.step()
    assert torch.equal(later.result().images, own.images)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return all tensors of plain data and harvests."""
    if isinstance(value, Harvest):
        return [value.images, value.keep_indices]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [value] if isinstance(value, torch.Tensor) else [each for item in items for each in tensors_of(item)]


@pytest.mark.parametrize("compiled", [False, True])
def test_what_was_made_in_inference_mode_is_inverted(compiled: bool) -> None:
    """Such tensors cannot be saved for a backward pass; `compiled` leaves the weights plain, as on a GPU."""
    with torch.inference_mode():
        teacher = Teacher(make_tiny_model(), **NORMAL)
        targets, jitter = TARGETS.clone(), torch.zeros(4, 2, 3, dtype=torch.int64)
    ready = frozen_copy(teacher, "float32", compiled=compiled)
    assert not any(weight.is_inference() for weight in ready.parameters())
    assert frozen_copy(ready, "float32", compiled=compiled) is ready
    images = images_of(teacher, targets, jitter=jitter)
    own = images_of(Teacher(make_tiny_model(), **NORMAL), jitter=torch.zeros(4, 2, 3, dtype=torch.int64))
    assert torch.equal(images, own)


@pytest.mark.parametrize(
    "changes",
    [
        {"flip": 0.5, "views": ViewConfig(degrees=5.0, scale=0.1, blur=0.5, noise=0.1), "patch_similarity": 0.1},
        {"basis": "cosine", "start": "dead_leaves"},
    ],
)
def test_the_default_dtype_of_the_caller_changes_nothing(tiny_teacher: Teacher, changes: dict[str, Any]) -> None:
    config = InversionConfig(iterations=4, lr=0.1, stop_steps=[2], stop_fractions=[0.5], **changes)
    images = images_of(tiny_teacher, config=config)
    torch.set_default_dtype(torch.float64)
    try:
        again = images_of(tiny_teacher, config=config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.half(), "VisionTransformer has weights in float16 .*convert it with `model.float"),
        (lambda model: model.double(), "weights in float64"),
        (torch.compile, "OptimizedModule is a wrapper: give the model in it, `model._orig_mod`"),
        (nn.DataParallel, "DataParallel is a wrapper: give the model in it, `model.module`"),
    ],
)
def test_models_that_cannot_be_read_as_they_are_say_what_to_do(change: Any, message: str) -> None:
    for kind, more in ((Teacher, {}), (MaskedTeacher, {"image_size": (32, 32)})):
        with pytest.raises(ModelError, match=message):
            kind(change(copy.deepcopy(make_tiny_model())), **NORMAL, **more)


def test_a_model_without_weights_makes_no_images() -> None:
    with pytest.raises(ModelError, match="VisionTransformer has no weights: its cls_token is on the meta device"):
        images_of(Teacher(make_tiny_model().to("meta"), **NORMAL))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((127.0, 127.0, 127.0), (58.0, 58.0, 58.0), "mean must be of pixels .* divide by 255"),
        (HALF, (0.0, 0.5, 0.5), "std must be above 0"),
        (HALF, (0.5, -0.5, 0.5), "std must be above 0"),
        ((float("nan"), 0.5, 0.5), HALF, "mean must be numbers"),
        (0.5, 0.5, "mean and std must be numbers, one per channel, not 0.5 and 0.5"),
        (HALF[:1], HALF[:1], "do not fit 3 channels"),
    ],
)
def test_a_normalization_that_is_none_is_refused(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Teacher(make_tiny_model(), mean=mean, std=std)


def test_so_it_is_of_models_that_read_whole_images() -> None:
    with pytest.raises(ModelError, match="mean and std must be numbers, one per channel, not 0"):
        MaskedTeacher(make_tiny_model(), image_size=(32, 32), mean=cast(Any, 0.5), std=cast(Any, 0.5))


def test_pixels_of_another_range_or_order_are_not_scored(tiny_teacher: Teacher) -> None:
    pixels, kept = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.arange(16).expand(2, -1)
    for wrong in (pixels / 255, pixels.permute(0, 3, 1, 2)):
        with pytest.raises(ConfigError, match=r"pixels must be uint8 \[B, H, W, 3\], not "):
            score(tiny_teacher, wrong, kept, TARGETS)
