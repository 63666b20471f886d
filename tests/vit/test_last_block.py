"""The last block for the tokens the classifier reads: the same numbers as the whole block, forward and backward."""

from typing import Any

import pytest
import timm
import torch

from pipeline.vit.last_block import num_tokens_read, pad_rows
from pipeline.vit.subset import SubsetViT
from tests.conftest import TINY, enlarge_weights, make_tiny_model

SIZES: dict[str, Any] = {**TINY}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.1}),
    ("vit_tiny_patch16_224", {"qkv_bias": False, "reg_tokens": 4}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("deit3_small_patch16_224", {}),
]


@pytest.mark.parametrize(("name", "changes"), FAMILIES)
def test_logits_gradients_and_scores_are_those_of_the_whole_block(name: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = enlarge_weights(timm.create_model(name, **{**SIZES, **changes})).double().eval()
    vit = SubsetViT(model)
    patches = torch.randn(3, 5, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([[0, 3, 7, 8, 15]] * 3)
    part, part_scores = vit.forward_patches_scores(patches, positions)
    (part_gradient,) = torch.autograd.grad(part.square().sum(), patches)
    with vit.attention_outputs() as outputs:
        whole, whole_scores = vit.forward_patches_scores(patches, positions)
    (whole_gradient,) = torch.autograd.grad(whole.square().sum(), patches)
    assert outputs[-1].shape[1] == 5  # it was the whole block
    assert torch.allclose(part, whole, atol=1e-10)
    assert torch.allclose(part_gradient, whole_gradient, atol=1e-10)
    assert torch.allclose(part_scores, whole_scores, atol=1e-10)
    assert not part_scores.requires_grad


def test_the_mlp_reads_no_patch() -> None:
    vit = SubsetViT(make_tiny_model())
    seen: list[torch.Size] = []
    vit.model.blocks[-1].mlp.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape))
    vit.forward_patches(torch.randn(17, 4, 3, 8, 8), torch.arange(4).expand(17, -1))
    assert [shape[:2] for shape in seen] == [(17, 1)]


def test_what_the_classifier_reads() -> None:
    assert num_tokens_read(make_tiny_model()) == 1
    assert num_tokens_read(make_tiny_model(global_pool="avg")) == 0
    assert num_tokens_read(timm.create_model("deit_tiny_distilled_patch16_224", **SIZES)) == 2
    parallel = timm.create_model("vit_small_patch16_18x2_224", **{**SIZES, "depth": 1})
    assert num_tokens_read(parallel) == 0
    rope = timm.create_model("eva02_tiny_patch14_224", **SIZES)
    assert num_tokens_read(rope) == 0


def test_few_rows_are_padded_and_many_left() -> None:
    rows = torch.randn(3, 2)
    assert torch.equal(pad_rows(rows), torch.cat([rows, rows[:1].expand(13, -1)]))
    assert pad_rows(torch.randn(16, 2)).shape == (16, 2)
    assert pad_rows(torch.randn(17, 2)).shape == (17, 2)
