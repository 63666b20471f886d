"""Patch scores of every kind against attention formed by hand and gradients taken by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.dinov2 import DINOV2, DINOV2_SWIGLU
from pipeline.vit.ranking import Ranking, resolve_ranking
from pipeline.vit.subset import SubsetViT
from tests.conftest import TINY, enlarge_weights, make_tiny_model

KEEP = torch.tensor([[0, 3, 5, 11], [1, 2, 9, 15]] * 4)
TARGETS = torch.arange(8)


def make(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return enlarge_weights(timm.create_model(name, **{**TINY, **changes})).eval()


def kept_tokens(model: Any, images: Tensor) -> Tensor:
    """Behind the position embedding, gathered by hand."""
    embedded = model._pos_embed(model.patch_embed(images))
    tokens = embedded[0] if isinstance(embedded, tuple) else embedded
    prefix = model.num_prefix_tokens
    return torch.stack([tokens[row, [*range(prefix), *(KEEP[row] + prefix)]] for row in range(len(images))])


def attention_by_hand(block: Any, tokens: Tensor, rotary: Tensor | None = None, prefix: int = 0) -> Tensor:
    """[B, heads, S, S]."""
    attention, normed = block.attn, block.norm1(tokens)
    bias = attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    query, key, _ = F.linear(normed, attention.qkv.weight, bias).chunk(3, dim=-1)
    query, key = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key))
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rotary is not None:
        half = attention.rotate_half
        query, key = (
            torch.cat([x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rotary, half=half)], dim=2)
            for x in (query, key)
        )
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)


@pytest.mark.parametrize("name", ["vit_base_patch16_gap_224", "vit_base_patch16_reg4_gap_256", "aimv2_1b_patch14_224"])
def test_attention_received_is_that_of_the_patches(name: str) -> None:
    model, images = make(name), torch.randn(8, 3, 32, 32)
    tokens = model.blocks[:-1](model.norm_pre(kept_tokens(model, images)))
    attention = attention_by_hand(model.blocks[-1], tokens)
    prefix = model.num_prefix_tokens
    _, scores = SubsetViT(model).forward_scores(images, KEEP)
    assert torch.allclose(scores, attention[:, :, prefix:, prefix:].mean(dim=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_224", "eva02_tiny_patch14_224"])
def test_the_attention_of_a_cls_token_with_rotary_positions(name: str) -> None:
    model, images, prefix = make(name), torch.randn(8, 3, 32, 32), 1
    prefix = model.num_prefix_tokens
    rotary = model.rope.get_embed(shape=(4, 4))[KEEP].unsqueeze(1)
    tokens = model.norm_pre(kept_tokens(model, images))
    for block in model.blocks[:-1]:
        tokens = block(tokens, rope=rotary)
    attention = attention_by_hand(model.blocks[-1], tokens, rotary, prefix)
    # Those of them that average patches never read their CLS token, so that it is not their natural ranking.
    _, scores = SubsetViT(model).forward_scores(images, KEEP, ranking="cls_attention")
    assert torch.allclose(scores, attention[:, :, 0, prefix:].mean(dim=1), atol=1e-5)


@pytest.mark.parametrize(("pool", "natural"), [("token", "cls_attention"), ("avg", "attention_received")])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_the_natural_ranking_looks_where_the_classifier_reads(name: str, pool: str, natural: str) -> None:
    assert resolve_ranking(make(name, global_pool=pool)) == natural


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_so150m_patch16_reg4_map_256"])
def test_the_attention_of_the_latent_query(name: str) -> None:
    """The pool's own output, formed anew from the scores of a single head."""
    model, images = make(name, num_heads=1), torch.randn(8, 3, 32, 32)
    vit, pool = SubsetViT(model), model.attn_pool
    _, tokens = vit.forward_tokens(images, KEEP)
    pooled = tokens[:, vit.num_prefix_tokens :]
    logits, scores = vit.forward_scores(images, KEEP)
    _, values = pool.kv(pooled).chunk(2, dim=-1)
    mixed = pool.proj(scores.unsqueeze(1) @ values)
    mixed = (mixed + pool.mlp(pool.norm(mixed)))[:, 0]
    assert torch.allclose(scores.sum(dim=1), torch.ones(8), atol=1e-5)
    assert torch.allclose(model.head(model.fc_norm(mixed)), logits, atol=1e-4)


def test_heads_of_the_latent_query_are_averaged() -> None:
    model, images = make("vit_base_patch16_siglip_224"), torch.randn(8, 3, 32, 32)
    vit, pool = SubsetViT(model), model.attn_pool
    _, tokens = vit.forward_tokens(images, KEEP)
    query = pool.q(pool.latent[0, 0]).view(2, 16)
    key = pool.kv(tokens)[..., :32].view(8, 4, 2, 16)
    expected = (torch.einsum("hd,bkhd->bhk", query, key) / 4).softmax(dim=-1).mean(dim=1)
    assert torch.allclose(vit.forward_scores(images, KEEP)[1], expected, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch16_18x2_224", "vit_dlittle_patch16_reg1_gap_256"]
)
def test_gradient_times_activation_of_the_target(name: str) -> None:
    model, images = make(name), torch.randn(8, 3, 32, 32)
    tokens = model.blocks[:-1](model.norm_pre(kept_tokens(model, images))).detach().requires_grad_()
    logits = model.forward_head(model.norm(model.blocks[-1](tokens)))
    logits[torch.arange(8), TARGETS].sum().backward()
    expected = (tokens.grad * tokens).abs().sum(dim=-1)[:, model.num_prefix_tokens :]
    vit = SubsetViT(model).requires_grad_(False)
    answer, scores = vit.forward_scores(images, KEEP, ranking="gradient_activation", targets=TARGETS)
    assert torch.allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert not scores.requires_grad
    assert torch.allclose(answer, logits, atol=1e-4)
    patches = vit._gather_patches(images, KEEP)
    _, again = vit.forward_patches_scores(patches, KEEP, ranking="gradient_activation", targets=TARGETS)
    assert torch.allclose(again, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ranking", ["cls_attention", "attention_received", "gradient_activation"])
def test_cut_patches_are_ranked_as_whole_images(ranking: Ranking) -> None:
    vit, images = SubsetViT(make_tiny_model()), torch.randn(8, 3, 32, 32)
    logits, scores = vit.forward_scores(images, KEEP, ranking=ranking, targets=TARGETS)
    patches = vit._gather_patches(images, KEEP)
    again, same = vit.forward_patches_scores(patches, KEEP, ranking=ranking, targets=TARGETS)
    assert torch.allclose(same, scores, rtol=1e-4, atol=1e-6)
    assert torch.allclose(again, logits, atol=1e-5)


NATURAL = {
    "vit_tiny_patch16_224": "cls_attention",
    "vit_small_patch16_dinov3": "attention_received",
    "vit_base_patch16_siglip_224": "pool_attention",
    "vit_pe_core_base_patch16_224": "pool_attention",
    "vit_base_patch16_gap_224": "attention_received",
    "vit_base_patch16_rope_reg1_gap_256": "attention_received",
    "vit_small_patch16_18x2_224": "gradient_activation",
    "vit_dlittle_patch16_reg1_gap_256": "gradient_activation",
}


@pytest.mark.parametrize(("name", "ranking"), NATURAL.items())
def test_each_family_has_its_natural_ranking(name: str, ranking: Ranking) -> None:
    assert resolve_ranking(make(name)) == ranking


# What docs/families.md calls families, and their names in timm.
NAMED = {
    "SigLIP": ["vit_base_patch16_siglip_224"],
    "Perception Encoder": ["vit_pe_core_base_patch16_224"],
    "ViT": ["vit_tiny_patch16_224", "vit_small_patch16_rope_224"],
    "DeiT": ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"],
    "DINO": ["vit_small_patch16_224.dino"],
    "DINOv2": ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"],
    "CLIP": ["vit_base_patch16_clip_224"],
    "EVA02-CLIP": ["eva02_base_patch16_clip_224", "eva02_large_patch14_clip_224"],
    "ViTs with global average pooling": ["vit_base_patch16_gap_224", "vit_base_patch16_reg4_gap_256"],
    "EVA02": ["eva02_tiny_patch14_224", "eva02_base_patch14_448"],
    "DINOv3": ["vit_small_patch16_dinov3", "vit_base_patch16_dinov3"],
    "DINOv2 of transformers": [DINOV2, DINOV2_SWIGLU],
    "ViTs with parallel blocks or differential attention": [
        *("vit_small_patch16_18x2_224", "vit_dlittle_patch16_reg1_gap_256"),
    ],
}


def test_the_page_names_the_ranking_that_each_family_gets() -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.MULTILINE)
    said = {family: ranking for ranking, families in table for family in families.split(", ")}
    assert said.keys() == NAMED.keys()
    found = {family: {resolve_ranking(make(name)) for name in names} for family, names in NAMED.items()}
    assert found == {family: {ranking} for family, ranking in said.items()}


@pytest.mark.parametrize(
    ("name", "ranking", "reason"),
    [
        ("vit_tiny_patch16_224", "pool_attention", "no latent query"),
        ("vit_base_patch16_gap_224", "cls_attention", "no CLS token"),
        ("vit_small_patch16_18x2_224", "cls_attention", "ParallelThingsBlock cannot be read"),
        ("vit_dlittle_patch16_reg1_gap_256", "attention_received", "cannot be read"),
    ],
)
def test_a_ranking_that_cannot_be_had_is_refused(name: str, ranking: Ranking, reason: str) -> None:
    with pytest.raises(ModelError, match=f"VisionTransformer cannot rank its patches by {ranking}: .*{reason}"):
        resolve_ranking(make(name), ranking)
