"""A ViT's last block, computed only for the tokens that the classifier reads.

Keys and values of all tokens are still needed; queries, attention, projection and MLP of the patches are not. In a
model of 12 blocks that saves 7% of the work. The attention matrix of so few rows is small enough to be computed
explicitly, so ranking the patches costs nothing more.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

# On CPUs a matrix product of a handful of rows takes another kernel and rounds differently, and hundreds of steps of
# inversion would amplify that last bit into the pixels. Products with a single row per image are padded to this many:
# MKL rounds fewer than 16 rows differently on Intel processors with AVX-512, and one row on any processor.
FEWEST_ROWS = 16


def num_tokens_read(model: nn.Module) -> int:
    """Return how many leading tokens the classifier reads; 0 where it reads patches too, or another kind of block."""
    if not isinstance(model, VisionTransformer) or not _is_plain(model.blocks[-1]) or not _has_timms_head(model):
        return 0
    if isinstance(model, VisionTransformerDistilled):
        return 2
    return 1 if model.global_pool == "token" else 0


def _has_timms_head(model: Any) -> bool:
    """Return whether a model reads its tokens as timm does: a subclass may read patches beside the CLS token."""
    family = VisionTransformerDistilled if isinstance(model, VisionTransformerDistilled) else VisionTransformer
    methods = ("forward_head", "pool")
    inherited = all(getattr(type(model), name) is getattr(family, name) for name in methods)
    return inherited and vars(model).keys().isdisjoint(methods) and model.attn_pool is None


def _is_plain(block: Any) -> bool:
    """Return whether `last_block` computes what a block does: an adapter replaces a layer, and has its weight too."""
    return is_timms(block) and getattr(block.attn, "gate", None) is None and type(block.attn.qkv) is nn.Linear


def is_timms(block: Any) -> bool:
    """Return whether a block and its attention are timm's plain ones, and no subclasses."""
    return type(block) is Block and type(block.attn) is Attention


def pad_rows(rows: Tensor, fewest: int = FEWEST_ROWS) -> Tensor:
    """Pad rows [B, ...] to `fewest` by repeating the first; more rows are left as they are."""
    missing = fewest - rows.shape[0]
    return rows if missing <= 0 else torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])])


def last_block(block: Any, tokens: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Run a timm `Block` for its first tokens.

    Args:
        block: a timm `Block` for which `_is_plain` is true, in evaluation mode, in which dropout does nothing.
        tokens: prefix tokens, and then those of all or of the kept patches [B, S, D].
        num_rows: R, the number of leading tokens to compute.

    Returns:
        Those tokens after the block [B, R, D], and their attention [B, heads, R, S], after softmax.
    """
    batch, attention = len(tokens), block.attn
    normed = block.norm1(tokens)
    query, keys, values = _project(attention, normed, num_rows)
    matrix = (query * attention.scale @ keys.transpose(-2, -1)).softmax(dim=-1)
    mixed = (matrix @ values).transpose(1, 2).flatten(2)
    # From here on there are only R rows per image.
    rows, mixed = pad_rows(tokens[:, :num_rows]), pad_rows(mixed)
    rows = rows + block.ls1(attention.proj(attention.norm(mixed)))
    rows = rows + block.ls2(block.mlp(block.norm2(rows)))
    return rows[:batch], matrix


def _project(attention: Any, normed: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [B, heads, R, d] of the first tokens, and keys and values [B, heads, S, d] of all."""
    batch, heads, width = len(normed), attention.num_heads, attention.qkv.out_features // 3
    weight, bias = attention.qkv.weight, attention.qkv.bias
    biases = (None, None) if bias is None else (bias[:width], bias[width:])
    query = F.linear(pad_rows(normed[:, :num_rows]), weight[:width], biases[0])[:batch]
    keys, values = F.linear(normed, weight[width:], biases[1]).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    query = query.unflatten(-1, (heads, -1)).transpose(1, 2)
    # Products of batches copy strided matrices; that of a single image would read them as they lie, by another kernel.
    return attention.q_norm(query), attention.k_norm(keys).contiguous(), values.contiguous()
