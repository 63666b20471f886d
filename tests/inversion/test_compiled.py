"""Compiled pieces and runs against eager ones, on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch._dynamo.utils import counters

from pipeline.errors import ConfigError
from pipeline.inversion import InversionConfig, InversionResult, Teacher, invert, losses
from pipeline.inversion.compiled import Compiled, padded_size
from tests.conftest import HALF, TINY, enlarge_weights

TARGETS = torch.tensor([3, 1, 4, 1, 5])
SEEDS = [10, 11, 12, 13, 14]
CPU = torch.device("cpu")
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "reg_tokens": 4}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("eva02_tiny_patch14_336", {}),
]


def make_teacher(name: str = "vit_tiny_patch16_224", **changes: Any) -> Teacher:
    torch.manual_seed(0)
    return Teacher(enlarge_weights(timm.create_model(name, **{**TINY, **changes})), mean=HALF, std=HALF)


def shown(count: int, num_kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images that ask for a gradient, the patches kept of them, and a jitter."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return images, torch.arange(num_kept).expand(count, -1), torch.tensor([[3, -2, 1]] * count)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch.compiler.reset()
    counters.clear()


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def assert_alike(teacher: Teacher, ours: InversionResult, theirs: InversionResult) -> None:
    """Compare as two splits of a batch: equal survivors, and pixels to two of 256 gray levels at 99.9%."""
    assert torch.equal(ours.keep_indices, theirs.keep_indices)
    assert (((ours.images - theirs.images) * teacher.std).abs() <= 1 / 128).float().mean() >= 0.999


def test_compiled_runs_make_the_same_images_and_one_graph_for_each_patch_count() -> None:
    teacher = make_teacher(depth=1)
    config = {"iterations": 30, "lr": 0.1, "stop_steps": [6], "stop_fractions": [0.5]}
    eager = invert(teacher, TARGETS, InversionConfig(**config), seeds=SEEDS)
    compiled = invert(teacher, TARGETS, InversionConfig(**config, compile=True), seeds=SEEDS)
    assert_alike(teacher, compiled, eager)
    # The teacher with 16 patches and with 8, and the total variation.
    assert num_graphs() == 3
    assert eager.compile_s == 0 < compiled.compile_s
    again = invert(teacher, TARGETS.flip(0), InversionConfig(**config, compile=True), seeds=SEEDS)
    assert num_graphs() == 3
    assert again.compile_s < compiled.compile_s


@pytest.mark.parametrize(("name", "changes"), FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_families_are_one_graph(name: str, changes: dict[str, Any], dtype: str) -> None:
    teacher, (images, *others) = make_teacher(name, **changes), shown(5, 7)
    look = Compiled(Teacher.look, teacher, device=CPU, max_rows=5, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        ours, theirs = look(images, *others), teacher.look(images, *others)
    gradients = [torch.autograd.grad(logits.float().square().sum(), images)[0] for logits in (ours, theirs)]
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))
    assert num_graphs() == 1


def test_a_batch_that_shrinks_image_by_image_meets_few_graphs() -> None:
    teacher, (images, *others) = make_teacher(), shown(8, 7)
    look = Compiled(Teacher.look, teacher, device=CPU, max_rows=8, backend="aot_eager")
    for count in (8, 7, 4, 3, 1):
        rows = [tensor[:count] for tensor in (images, *others)]
        ours, theirs = look(*rows), teacher.look(*rows)
        gradients = [torch.autograd.grad(logits.square().sum(), images)[0] for logits in (ours, theirs)]
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)
        assert not gradients[0][count:].any()
    # 8, 4 and 1 images.
    assert num_graphs() == 3


@pytest.mark.parametrize("prior", [losses.tv_l2, losses.tv_l2_batch, losses.tv_l1, losses.pixel_l2])
def test_image_priors_are_one_graph(prior: Any) -> None:
    images = shown(3, 1)[0]
    whole = None if prior is losses.tv_l2_batch else 4
    ours, theirs = Compiled(prior, device=CPU, max_rows=whole, backend="aot_eager")(images), prior(images)
    gradients = [torch.autograd.grad(value.sum(), images)[0] for value in (ours, theirs)]
    assert torch.allclose(ours, theirs)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    assert num_graphs() == 1


def returning_a_buffer(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
    """A backend that returns gradients as CUDA graphs do: where the next run writes over them."""
    buffer = torch.empty(0)

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
            return 2 * rows

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return buffer.resize_(gradients[0].shape).copy_(2 * gradients[0]).detach()

    return lambda *rows: (Doubled.apply(rows[0]),)


def test_gradients_do_not_stay_where_a_graph_writes_again() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    double = Compiled(lambda rows: 2 * rows, device=CPU, max_rows=None, backend=returning_a_buffer)
    double(rows).sum().backward()
    first = rows.grad
    double(torch.ones(2, 3, requires_grad=True)).mul(5).sum().backward()
    assert first is not None
    assert torch.equal(first, torch.full((2, 3), 2.0))


def test_sizes_are_halved_as_a_batch_is_where_memory_runs_out() -> None:
    assert [padded_size(count, 10) for count in range(10, 0, -1)] == [10] * 5 + [5, 5, 3, 2, 1]
    assert [padded_size(count, 1) for count in (1,)] == [1]


def test_patch_similarity_cannot_be_compiled() -> None:
    with pytest.raises(ConfigError, match="patch_similarity"):
        InversionConfig(compile=True, patch_similarity=1.0)
