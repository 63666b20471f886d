"""Counted work against PyTorch's own counter, and against the figures in the literature."""

from typing import Any

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.inversion import InversionConfig, Teacher
from pipeline.inversion.flops import TeacherShape, run_flops, step_flops
from tests.conftest import HALF, TINY

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", {"reg_tokens": 4, "global_pool": "avg"}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("deit3_small_patch16_224", {"depth": 4}),
]


@pytest.mark.parametrize(("name", "changes"), FAMILIES)
@pytest.mark.parametrize("num_kept", [3, 16])
def test_counted_as_pytorch_counts(name: str, changes: dict[str, Any], num_kept: int) -> None:
    model: Any = timm.create_model(name, **{**TINY, **changes})  # type: ignore[arg-type]
    teacher = Teacher(model, mean=HALF, std=HALF)
    # No fewer images than rows are padded to, and attention whose backward computes nothing twice.
    patches = torch.randn(16, num_kept, 3, 8, 8, requires_grad=True)
    positions = torch.arange(num_kept).expand(16, -1)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        logits = teacher.forward_patches(patches, positions)
        forward = counter.get_total_flops()
        logits.sum().backward()
    counted = step_flops(TeacherShape.of(teacher), num_kept) * 16
    assert (counted.forward, counted.total) == (forward, counter.get_total_flops())


@pytest.mark.parametrize(
    ("name", "dense", "sparse"),
    [
        ("deit_tiny_patch16_224", 1.22, 0.289),
        ("deit_small_patch16_224", 4.54, 1.13),
        ("deit_base_patch16_224", 17.45, 4.45),
    ],
)
def test_published_schedule(name: str, dense: float, sparse: float) -> None:
    """GMAC of a forward, mean over the 4000 steps, with the last block run whole as published."""
    with torch.device("meta"):
        model = timm.create_model(name)
    shape = TeacherShape.of(Teacher(model, mean=HALF, std=HALF))
    whole = TeacherShape(**{**vars(shape), "tokens_read": 0})
    for stops, expected in (([], dense), ([50, 100, 200, 300], sparse)):
        config = InversionConfig(stop_steps=stops, stop_fractions=[0.3] * len(stops))
        gmac = run_flops(whole, config.phases(196)).forward / 2 / 4000 / 1e9
        assert gmac == pytest.approx(expected, rel=0.03)


def test_a_sparse_step_of_deit_base_is_4_4_times_less_work() -> None:
    with torch.device("meta"):
        teacher = Teacher(timm.create_model("deit_base_patch16_224"), mean=HALF, std=HALF)
    shape = TeacherShape.of(teacher)
    assert step_flops(shape, 196).total / step_flops(shape, 46).total == pytest.approx(4.42, rel=0.02)


@pytest.mark.parametrize(("factor", "times"), [(2, 2.7), (4, 6.5), (7, 12.4)])
def test_work_of_an_image_by_rebirth(factor: int, times: float) -> None:
    """Against a dense image, as counted of the method (DeiT-B, forward and backward)."""
    with torch.device("meta"):
        teacher = Teacher(timm.create_model("deit_base_patch16_224"), mean=HALF, std=HALF)
    shape = TeacherShape.of(teacher)
    dense = run_flops(shape, [(4000, 196)]).total
    rebirth = run_flops(shape, InversionConfig(rebirth=factor).phases(196)).total / factor
    assert dense / rebirth == pytest.approx(times, rel=0.03)
