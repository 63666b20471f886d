"""Tests that only a GPU can run; the recorded run is replayed on one in test_conformance.py."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.inversion import Inversion, InversionConfig, Teacher, invert
from pipeline.inversion.engine import CHECK_EVERY
from tests.conftest import HALF, make_tiny_model, requires_gpu

pytestmark = requires_gpu

SPARSE: dict[str, Any] = {"iterations": 40, "lr": 0.1, "stop_steps": [5, 10], "stop_fractions": [0.5, 0.25]}
TARGETS = torch.arange(32) % 10
SEEDS = list(range(32))


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(make_tiny_model(), mean=HALF, std=HALF).to("cuda")


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_seeds_same_bits(teacher: Teacher, dtype: str) -> None:
    config = InversionConfig(**SPARSE, dtype=dtype)  # type: ignore[arg-type]
    first, again = (invert(teacher, TARGETS, config, seeds=SEEDS) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.keep_indices, again.keep_indices)


def test_start_and_jitter_are_those_of_the_cpu(teacher: Teacher) -> None:
    config = InversionConfig(**{**SPARSE, "iterations": 11})
    there = invert(teacher, TARGETS, config, seeds=SEEDS)
    here = invert(Teacher(make_tiny_model(), mean=HALF, std=HALF), TARGETS, config, seeds=SEEDS)
    assert torch.allclose(there.images.cpu(), here.images, atol=0.05)


def test_memory_that_runs_out_splits_the_batch(teacher: Teacher) -> None:
    config = InversionConfig(**SPARSE)
    invert(teacher, TARGETS, config, seeds=SEEDS)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = invert(teacher, TARGETS, config, seeds=SEEDS)
    total = torch.cuda.get_device_properties(0).total_memory
    limit = torch.cuda.max_memory_reserved() * 0.8 / total
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        split = invert(teacher, TARGETS, config, seeds=SEEDS)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert split.micro_batch < whole.micro_batch == 32


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_between_checks_do_not_wait_for_the_device(teacher: Teacher, compiled: bool) -> None:
    config = InversionConfig(**{**SPARSE, "iterations": 2 * CHECK_EVERY}, compile=compiled)
    run = Inversion(teacher, TARGETS, config, seeds=SEEDS)
    # Past both stops, what is compiled, warmed up and recorded, and the first check.
    for _ in range(CHECK_EVERY):
        run.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(CHECK_EVERY - 1):
            run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.step()
    assert run.result().images.isfinite().all()


@pytest.mark.parametrize("micro_batch", [None, 12])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_runs_make_the_same_images(teacher: Teacher, dtype: str, micro_batch: int | None) -> None:
    config: dict[str, Any] = {**SPARSE, "dtype": dtype, "micro_batch": micro_batch}
    eager, compiled = (
        invert(teacher, TARGETS, InversionConfig(**config, compile=c), seeds=SEEDS) for c in (False, True)
    )
    assert torch.equal(eager.keep_indices, compiled.keep_indices)
    equal = (((eager.images - compiled.images) * teacher.std).abs() <= 1 / 128).float().mean().item()
    # A compiled graph rounds to bfloat16 once for each fused loop, not once for each operation: 0.965 on an H100.
    assert equal >= (0.999 if dtype == "float32" else 0.95)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_goes_on_from_its_state_to_the_same_bits(teacher: Teacher, compiled: bool) -> None:
    config = InversionConfig(**SPARSE, compile=compiled)
    run, second = (Inversion(teacher, TARGETS, config, seeds=SEEDS) for _ in range(2))
    for _ in range(10):
        run.step()
    second.load_state(run.state())
    for each in (run, second):
        while not each.finished:
            each.step()
    assert torch.equal(run.images, second.images)
