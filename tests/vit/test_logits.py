"""Classes are counted from a model's own logits, not from `num_classes`, and its own forward must return them."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.inversion import InversionConfig, MaskedTeacher, Teacher, invert
from pipeline.vit.last_block import num_tokens_read
from pipeline.vit.subset import SubsetViT
from tests.conftest import HALF, TINY, enlarge_weights, make_tiny_model, make_whole

NORMAL: dict[str, Any] = {"mean": HALF, "std": HALF}


def with_head(head: nn.Module, **changes: Any) -> nn.Module:
    """The tiny model with another head, put there as many fine-tune it; `num_classes` still says 10."""
    model: Any = make_tiny_model(**changes)
    model.head = head
    return model


@pytest.mark.parametrize("changes", [{}, {"num_classes": 0}, {"global_pool": "avg"}])
def test_a_head_that_was_put_in_gives_the_classes(changes: dict[str, Any]) -> None:
    teacher = Teacher(with_head(nn.Sequential(nn.Dropout(), nn.Linear(32, 5)), **changes), **NORMAL)
    assert teacher.num_classes == 5
    result = invert(teacher, torch.tensor([0, 4]), InversionConfig(iterations=2, stop_steps=[]), seeds=[0, 1])
    assert result.images.isfinite().all()
    with pytest.raises(ConfigError, match="target 5 is no class of the teacher, which has 5"):
        invert(teacher, torch.tensor([5]), InversionConfig(iterations=2, stop_steps=[]), seeds=[0])


def test_both_heads_of_a_distilled_model_may_be_put_in() -> None:
    sizes: dict[str, Any] = {**TINY}
    model: Any = timm.create_model("deit_tiny_distilled_patch16_224", **sizes)
    model.head, model.head_dist = nn.Linear(32, 4), nn.Linear(32, 4)
    assert Teacher(model, **NORMAL).num_classes == 4


def test_a_masked_model_gives_its_classes_too() -> None:
    model: Any = make_whole("beit_base_patch16_224")
    model.head = nn.Linear(32, 3)
    assert MaskedTeacher(model, image_size=(64, 64), **NORMAL).num_classes == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_head(nn.Identity()), "no classifier head .*an Identity is in its place"),
        (lambda: with_head(nn.Linear(32, 1)), "has one logit: a softmax over one class is always 1"),
        (lambda: with_head(nn.Linear(48, 5)), "the head of VisionTransformer cannot read its tokens of 32"),
        (lambda: with_head(nn.Sequential(nn.Linear(32, 5), nn.Softmax(1))), "outputs probabilities"),
        (lambda: make_tiny_model(global_pool=""), r"\[B, 2, 10\] \(a token sequence\), which are not logits"),
    ],
)
def test_heads_without_logits_of_classes_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Teacher(make(), **NORMAL)


class Sharpened(VisionTransformer):
    """A subclass whose own forward returns other logits than its head."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        return 2 * super().forward(x)


class ReadsPatches(VisionTransformer):
    """A subclass whose head reads patches beside the CLS token."""

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        return x[:, 0] + x.amax(dim=1)


def own(family: type[VisionTransformer]) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**TINY}
    return enlarge_weights(family(**sizes)).eval()


def hooked() -> nn.Module:
    model = make_tiny_model()
    model.register_forward_hook(lambda _model, _args, logits: logits.flip(1))
    return model


@pytest.mark.parametrize("make", [lambda: own(Sharpened), hooked])
def test_a_model_that_returns_more_than_its_head_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ModelError, match="its own forward returns other logits than its blocks and head do"):
        Teacher(make(), **NORMAL)


def test_a_head_that_reads_patches_gets_them_all() -> None:
    model = own(ReadsPatches)
    assert num_tokens_read(model) == 0
    teacher, images = Teacher(model, **NORMAL), torch.randn(2, 3, 32, 32)
    assert torch.allclose(teacher.read_by_patches(images), model(images), atol=1e-4)


def test_counting_classes_changes_no_mode_of_the_model() -> None:
    model = with_head(nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 5))).train()
    model.get_submodule("blocks").eval()
    before = model.get_submodule("head.0").state_dict()["running_var"].clone()
    assert SubsetViT(model).num_classes == 5
    assert torch.equal(model.get_submodule("head.0").state_dict()["running_var"], before)
    assert model.training
    assert not model.get_submodule("blocks").training


def test_a_model_without_storage_is_read_by_its_shapes() -> None:
    with torch.device("meta"):
        model: Any = timm.create_model("vit_tiny_patch16_224")
        model.head = nn.Linear(192, 7)
    assert Teacher(model, mean=HALF, std=HALF).num_classes == 7
