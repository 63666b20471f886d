"""Modes of PyTorch that a program has set for itself change nothing that is made in it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.inversion import InversionConfig, MaskedTeacher, Teacher, invert
from pipeline.models import ModelConfig, load_model
from pipeline.torch_modes import usual_modes


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


# The meta device stands for any other than the CPU: nothing can be computed there.
MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("mode", MODES)
def test_a_teacher_and_its_images_are_the_same_in_every_mode(mode: str, tiny_folder: Path) -> None:
    def make() -> tuple[str, torch.Tensor]:
        loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
        teacher = Teacher(loaded.model, mean=loaded.mean, std=loaded.std)
        config = InversionConfig(iterations=4, stop_steps=[2], stop_fractions=[0.5], basis="cosine", tv_l1=0.1)
        targets = torch.tensor([3, 7], device="cpu")
        return loaded.digest, invert(teacher, targets, config, seeds=[1, 2]).harvests[-1].images

    digest, images = make()
    with MODES[mode]():
        again, made = make()
    assert again == digest
    assert torch.equal(made.clone(), images)


@pytest.mark.parametrize("mode", MODES)
def test_a_masked_teacher_is_the_same_in_every_mode(mode: str, whole_folder: Path) -> None:
    loaded = load_model(ModelConfig(name=f"local-dir:{whole_folder}"))
    config = InversionConfig(mask_only=True, iterations=4, stop_steps=[2], stop_fractions=[0.5])

    def make() -> torch.Tensor:
        teacher = MaskedTeacher(loaded.model, image_size=loaded.input_size[1:], mean=loaded.mean, std=loaded.std)
        return invert(teacher, torch.tensor([3, 7], device="cpu"), config, seeds=[1, 2]).harvests[-1].images

    images = make()
    with MODES[mode]():
        made = make()
    assert torch.equal(made.clone(), images)


@pytest.mark.parametrize("mode", ["device", "float64", "autocast", "inference", "no gradients"])
def test_modes_are_the_callers_own_again_afterwards(mode: str) -> None:
    def modes() -> tuple[object, ...]:
        enabled = torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        return torch.get_default_device(), torch.get_default_dtype(), *enabled

    usual = modes()
    with MODES[mode]():
        before = modes()
        with usual_modes():
            assert modes() == usual
        assert modes() == before != usual
