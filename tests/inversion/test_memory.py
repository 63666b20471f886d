"""Predicted memory against the bytes of the tensors alive."""

from typing import Any

import pytest
import timm
import torch

from pipeline.inversion import Inversion, InversionConfig, Teacher, ViewConfig
from pipeline.inversion.memory import LiveBytes, StepBytes, largest_batch, predict, predict_run
from tests.conftest import HALF

# Width, heads and depth in the proportions of DeiT-T, S and B; a small one with images that outweigh the tokens.
SHAPES: list[dict[str, Any]] = [
    {"embed_dim": 96, "num_heads": 3, "depth": 6},
    {"embed_dim": 192, "num_heads": 6, "depth": 4},
    {"embed_dim": 384, "num_heads": 12, "depth": 4},
    {"embed_dim": 32, "num_heads": 2, "depth": 2},
]


def measure(teacher: Teacher, config: InversionConfig, batch: int) -> int:
    """Peak of a step's tensors without the weights; the third, when its patches are stopped."""
    run = Inversion(teacher, torch.arange(batch), config, seeds=list(range(batch)))
    run.step()
    run.step()
    with LiveBytes(run._optimizer.tensors, without=run.teacher.parameters()) as live:
        run.step()
    return live.peak


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("stop", "micro_batch"), [(None, None), (0.75, None), (None, 2)])
def test_predicted_as_measured(
    changes: dict[str, Any], dtype: str, stop: float | None, micro_batch: int | None
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=80, patch_size=8, num_classes=10, **changes)
    teacher = Teacher(model, mean=HALF, std=HALF)
    stops: dict[str, Any] = {"stop_steps": [1] if stop else [], "stop_fractions": [stop] if stop else []}
    config = InversionConfig(iterations=3, dtype=dtype, micro_batch=micro_batch, **stops)  # type: ignore[arg-type]
    predicted = predict(teacher, config, batch=4, num_kept=25 if stop else 100)
    assert predicted.pixels + predicted.work == pytest.approx(measure(teacher, config, 4), rel=0.15)


@pytest.mark.parametrize("views", [ViewConfig(degrees=10, scale=0.1, blur=0.7, noise=0.3), ViewConfig(noise=0.3)])
def test_views_are_predicted_as_measured(views: ViewConfig) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=80, patch_size=8, num_classes=10, **SHAPES[0])
    teacher = Teacher(model, mean=HALF, std=HALF)
    config = InversionConfig(iterations=3, views=views, stop_steps=[], stop_fractions=[])
    predicted = predict(teacher, config, batch=4)
    assert predicted.pixels + predicted.work == pytest.approx(measure(teacher, config, 4), rel=0.02)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "keep", "registers"), [(10, 9, 0.7, 0), (34, 8, 0.23, 0), (16, 4, 0.1, 4)]
)
def test_the_largest_step_of_a_run_may_be_in_any_phase(
    batch: int, micro_batch: int, keep: float, registers: int
) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=80, patch_size=8, num_classes=10, reg_tokens=registers, **SHAPES[1]
    )
    teacher = Teacher(model, mean=HALF, std=HALF)
    config = InversionConfig(iterations=4, stop_steps=[2], stop_fractions=[1 - keep], micro_batch=micro_batch)
    run = Inversion(teacher, torch.arange(batch) % 10, config, seeds=list(range(batch)))
    with LiveBytes([run.images], without=run.teacher.parameters()) as live:
        while not run.finished:
            run.step()
    predicted = predict_run(teacher, config, batch=batch)
    assert predicted.pixels + predicted.work == pytest.approx(live.peak, rel=0.15)
    # What goes together later takes no more memory than the parts that were asked for.
    asked = predict(teacher, config, batch=micro_batch)
    assert predicted.work < 1.1 * asked.work + batch * 3 * 80 * 80 * 4


def test_what_fits_leaves_a_margin() -> None:
    one = StepBytes(weights=2000, pixels=100, work=400)
    assert largest_batch(10_000, one) == 12
    assert largest_batch(1000, one) == 0


def test_bytes_alive_are_those_of_storages() -> None:
    given = torch.zeros(100)
    with LiveBytes([given]) as live:
        view = given[:50]
        more = view + 1
        del more
        torch.ones(10, dtype=torch.float64)
    assert live.peak == 4 * 100 + 4 * 50
