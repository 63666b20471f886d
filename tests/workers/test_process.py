"""Set-up that actors and Ray Train's workers share."""

import os
from pathlib import Path

import pytest
import torch

from pipeline.distillation import DistillationConfig, StudentConfig
from pipeline.errors import ConfigError, OtherModelError
from pipeline.models import ModelConfig, load_model
from pipeline.workers import WorkersConfig, load_again, pick_device, threads, with_absolute_paths


def test_threads_are_put_back_whatever_happens() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="within"), threads(before + 2):  # noqa: PT012
        assert torch.get_num_threads() == before + 2
        raise ValueError("within")
    assert torch.get_num_threads() == before


def test_cuda_that_is_not_there() -> None:
    assert pick_device("cpu", "pool.device").type == "cpu"
    if torch.cuda.is_available():
        assert pick_device("cuda", "pool.device").type == pick_device("auto", "pool.device").type == "cuda"
        return
    assert pick_device("auto", "pool.device").type == "cpu"
    with pytest.raises(ConfigError, match=r"pool\.device is 'cuda'"):
        pick_device("cuda", "pool.device")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("size", -1, "workers.size must not be negative, not -1"),
        ("cpus_per_worker", 0, "workers.cpus_per_worker must be at least 1, not 0"),
        ("start_timeout_s", 0, "workers.start_timeout_s must be at least 1, not 0"),
        ("max_failures", -1, "workers.max_failures must not be negative, not -1"),
    ],
)
def test_impossible_workers_are_refused(name: str, value: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorkersConfig(**{name: value})  # type: ignore[arg-type]


def test_workers_get_absolute_paths_of_models_and_output() -> None:
    config = DistillationConfig(
        teacher=ModelConfig(name="local-dir:teacher"),
        student=StudentConfig(model=ModelConfig(name="vit_tiny_patch16_224", checkpoint="student.safetensors")),
        images="images",
        output="s3://bucket/out",
    )
    absolute = with_absolute_paths(config)
    assert absolute.teacher.name == f"local-dir:{os.getcwd()}/teacher"
    assert absolute.student.model is not None
    assert absolute.student.model.checkpoint == f"{os.getcwd()}/student.safetensors"
    assert absolute.output == "s3://bucket/out"
    assert with_absolute_paths(absolute) == absolute


def test_a_model_that_differs_from_the_drivers_is_refused(tiny_folder: Path) -> None:
    config = ModelConfig(name=f"local-dir:{tiny_folder}")
    digest = load_model(config).digest
    assert load_again(config, digest).digest == digest
    with pytest.raises(OtherModelError, match=rf"^teacher '.*' differs .* \(digest 00000000\) .*{digest[:8]}"):
        load_again(config, "0" * 64)
