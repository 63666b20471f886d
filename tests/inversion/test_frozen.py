"""Frozen copies give the same outputs and gradients, and leave the teacher unchanged."""

import copy

import pytest
import timm
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.inversion import Teacher
from pipeline.inversion.frozen import frozen_copy
from tests.conftest import HALF, TINY, enlarge_weights


@pytest.fixture(params=["vit_tiny_patch16_224", "deit3_small_patch16_224", "eva02_tiny_patch14_224"])
def teacher(request: pytest.FixtureRequest) -> Teacher:
    torch.manual_seed(0)
    return Teacher(enlarge_weights(timm.create_model(request.param, **TINY)), mean=HALF, std=HALF)  # type: ignore[arg-type]


def answer(teacher: Teacher, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the gradient of their squares with respect to the pixels."""
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    keep = torch.tensor([[0, 3, 7, 8, 15]] * 9)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = teacher(images, keep)
    (gradient,) = torch.autograd.grad(logits.float().square().sum(), images)
    return logits, gradient


def test_float32_answers_and_gradients_are_the_same(teacher: Teacher) -> None:
    for ours, theirs in zip(
        answer(frozen_copy(teacher, "float32"), "float32"), answer(teacher, "float32"), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_rounds_as_autocast_does(teacher: Teacher) -> None:
    exact = answer(teacher, "float32")
    ours, theirs = answer(frozen_copy(teacher, "bfloat16"), "bfloat16"), answer(teacher, "bfloat16")
    for mine, autocast, true in zip(ours, theirs, exact, strict=True):
        scale = true.abs().max()
        assert (mine - autocast).abs().max() < 0.05 * scale
        # It is bfloat16 indeed, and no further from the truth than autocast.
        assert 1e-5 * scale < (mine - true).abs().max() < 2 * (autocast - true).abs().max() + 1e-3 * scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_teacher_itself_is_untouched(teacher: Teacher, dtype: str) -> None:
    before = copy.deepcopy(teacher.state_dict())
    frozen = frozen_copy(teacher, dtype)
    answer(frozen, dtype)
    after = teacher.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(block.attn.fused_attn for block in teacher.model.blocks)
    assert all(type(module) is nn.Linear for module in teacher.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_is_made_once(teacher: Teacher, dtype: str) -> None:
    frozen = frozen_copy(teacher, dtype)
    assert frozen is not teacher
    assert frozen_copy(frozen, dtype) is frozen
    # A further layout on top would not be what was asked for.
    with pytest.raises(ModelError, match=r"(packed|rounded) already, .*: give the teacher that this copy was made of"):
        frozen_copy(frozen, "float32" if dtype == "bfloat16" else "bfloat16")


def test_layers_of_plain_blocks_are_packed_but_what_the_last_block_reads_in_part() -> None:
    teacher = Teacher(timm.create_model("vit_tiny_patch16_224", **TINY), mean=HALF, std=HALF)  # type: ignore[arg-type]
    first, last = frozen_copy(teacher, "float32").model.blocks
    assert not any(isinstance(module, nn.Linear) for module in first.modules())
    assert [name for name, module in last.named_modules() if isinstance(module, nn.Linear)] == ["attn.qkv"]
