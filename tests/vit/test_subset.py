"""Every family reads a subset as timm's own blocks would."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from pipeline.vit.ranking import attention_probabilities
from pipeline.vit.subset import SubsetViT
from tests.conftest import TINY, enlarge_weights, make_tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_base_patch16_clip_224": {},
    "eva02_tiny_patch14_336": {},
    "eva_giant_patch14_224": {},
    "beit3_base_patch16_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_base_patch16_gap_224": {},
    "vit_base_patch16_reg4_gap_256": {},
    "aimv2_1b_patch14_224": {},
    "vit_base_patch16_rpn_224": {},
    "vit_small_patch16_18x2_224": {},
    "vit_pwee_patch16_reg1_gap_256": {},
    "vit_dlittle_patch16_reg1_gap_256": {},
    "vit_base_patch14_reg1_tipsv2": {},
    "vit_base_patch16_radio_v3": {},
    "vit_intern300m_patch14_448": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_mixed_ape_224": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
    "vit_pe_core_base_patch16_224": {},
    "vit_pe_spatial_base_patch16_512": {},
    "vit_base_patch16_sapiens2": {"num_kv_heads": 1},
}


def make(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return enlarge_weights(timm.create_model(name, **{**TINY, **changes})).eval()


# An average over all tokens cannot be masked from outside, nor can blocks that take no mask.
READ_AT_CLS = [
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"),
    *("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_clip_224"),
    *("vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_ape_224", "vit_base_patch16_sapiens2"),
]


@pytest.mark.parametrize("name", ["vit_base_patch16_gap_224", "vit_base_patch16_reg4_gap_256", "aimv2_1b_patch14_224"])
def test_an_average_is_taken_over_the_kept_tokens(name: str) -> None:
    """Logits equal those of tokens gathered by hand after timm's own embedding and run through its own blocks."""
    model: Any = make(name)
    images, keep = torch.randn(8, 3, 32, 32), torch.stack([torch.randperm(16)[:6] for _ in range(8)])
    tokens, prefix = model._pos_embed(model.patch_embed(images)), model.num_prefix_tokens
    kept = torch.stack([tokens[row, [*range(prefix), *(keep[row] + prefix)]] for row in range(8)])
    features = model.norm(model.blocks(model.norm_pre(kept)))
    logits, read = SubsetViT(model).forward_tokens(images, keep)
    assert torch.allclose(read, features, atol=1e-4)
    assert torch.allclose(logits, model.head(model.fc_norm(features[:, prefix:].mean(dim=1))), atol=1e-4)


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param, **FAMILIES[request.param])


def test_keeping_every_patch_equals_the_dense_path(model: nn.Module) -> None:
    images = torch.randn(5, 3, 32, 32)
    expected = model(images)
    everything = torch.arange(16).expand(5, -1)
    vit = SubsetViT(model)
    assert torch.allclose(vit(images, everything), expected, atol=1e-4)
    assert torch.allclose(vit(images), expected, atol=1e-6)


@pytest.mark.parametrize("name", READ_AT_CLS)
def test_a_subset_equals_masking_the_others_out_of_the_attention(name: str) -> None:
    """timm's blocks take an attention mask: patches nobody attends to might as well not be there."""
    model = make(name, **FAMILIES[name])
    images = torch.randn(3, 3, 32, 32)
    keep = torch.stack([torch.randperm(16)[:6].sort().values for _ in range(3)])
    vit = SubsetViT(model)
    logits, tokens = vit.forward_tokens(images, keep)
    assert tokens.shape == (3, vit.num_prefix_tokens + 6, 32)
    alive = torch.zeros(3, 16, dtype=torch.bool).scatter(1, keep, True)
    mask = torch.cat([torch.ones(3, vit.num_prefix_tokens, dtype=torch.bool), alive], dim=1)[:, None, None, :]
    features = model.forward_features(images, attn_mask=mask.expand(-1, -1, mask.shape[-1], -1))  # type: ignore[operator]
    assert torch.allclose(logits, model.forward_head(features), atol=1e-4)  # type: ignore[operator]


def test_the_order_of_patches_does_not_matter(model: nn.Module) -> None:
    images = torch.randn(4, 3, 32, 32)
    keep = torch.tensor([[3, 1, 9]]).expand(4, -1)
    vit = SubsetViT(model)
    assert torch.allclose(vit(images, keep), vit(images, keep.flip(1)), atol=1e-4)


def test_pixels_of_stopped_patches_change_nothing(model: nn.Module) -> None:
    images = torch.randn(4, 3, 32, 32)
    keep = torch.tensor([[0, 1, 2]]).expand(4, -1)
    vit = SubsetViT(model)
    before = vit(images, keep)
    images[:, :, 8:] = 100
    assert torch.equal(vit(images, keep), before)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_stopped_patches_are_not_even_embedded(name: str) -> None:
    vit = SubsetViT(make(name))
    assert vit.embeds_subsets
    images = torch.randn(2, 3, 32, 32)
    vit.model.patch_embed.forward = None  # the whole-image embedding is never called
    assert vit(images, torch.tensor([[0, 5]] * 2)).shape == (2, 10)


def test_batches_of_any_size_round_alike() -> None:
    vit = SubsetViT(make_tiny_model())
    images = torch.randn(8, 3, 32, 32)
    # With the CLS token 16 tokens: of fewer, some processors round a single image differently.
    keep = torch.arange(15).expand(8, -1)
    whole = vit(images, keep)
    for size in (1, 2, 3, 5):
        assert torch.equal(vit(images[:size], keep[:size]), whole[:size])


def test_attention_is_read_without_touching_the_forward() -> None:
    vit = SubsetViT(make_tiny_model())
    images = torch.randn(2, 3, 32, 32)
    plain = vit(images)
    with attention_probabilities(vit.model) as captured:
        assert torch.equal(vit(images), plain)
    assert captured[0].shape == (2, 2, 17, 17)
    assert torch.allclose(captured[0].sum(-1), torch.ones(2, 2, 17))
    assert vit.model.blocks[-1].attn.fused_attn
