"""Rank patches by attention or by a gradient."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from timm.layers import Attention, AttentionPoolLatent, AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.vit.families import num_prefix_in_blocks, reading_block

Ranking = Literal["cls_attention", "pool_attention", "attention_received", "gradient_activation"]
# Attentions whose softmax passes through `attn_drop`, [B, heads, R, S].
_READABLE = (Attention, AttentionRope, EvaAttention)


def resolve_ranking(model: nn.Module, wanted: Literal["auto", Ranking] = "auto") -> Ranking:
    """Return the ranking that is asked for; for `auto` the one that suits the family.

    `auto` takes the attention that makes the classifier's input: of the latent query that pools the tokens; else of the
    CLS token, as published, if the classifier reads it; else the attention that patches receive from each other, if the
    classifier averages them. Where that attention cannot be read, it takes the gradient.

    Args:
        model: a timm model that passes `check_family`.
        wanted: a ranking, or `auto`.

    Raises:
        ModelError: the model's patches cannot be ranked that way; the message names model, ranking and reason.
    """
    if wanted == "auto":
        return next(r for r in _NATURAL_ORDER if _obstacle(model, r) is None and _reads_by(model, r))
    reason = _obstacle(model, wanted)
    if reason is not None:
        raise ModelError(f"{type(model).__name__} cannot rank its patches by {wanted}: {reason}")
    return wanted


_NATURAL_ORDER: tuple[Ranking, ...] = ("pool_attention", "cls_attention", "attention_received", "gradient_activation")


def _reads_by(model: Any, ranking: Ranking) -> bool:
    """Return whether the classifier reads the tokens that a ranking looks at.

    A classifier that averages patches never reads its CLS token.
    """
    return ranking != "cls_attention" or model.global_pool == "token"


def _obstacle(model: Any, ranking: Ranking) -> str | None:
    """Return why a model's patches cannot be ranked that way; None if they can."""
    match ranking:
        case "pool_attention":
            pool = getattr(model, "attn_pool", None)
            return None if isinstance(pool, AttentionPoolLatent) else "no latent query pools its tokens"
        case "cls_attention" if model.cls_token is None:
            return "it has no CLS token"
        case "cls_attention" | "attention_received":
            block = reading_block(model)
            return None if shows_attention(block) else f"the attention in its {type(block).__name__} cannot be read"
        case _:
            return None


def shows_attention(block: nn.Module) -> bool:
    """Return whether a block has a single attention, whose softmax can be captured."""
    return isinstance(getattr(block, "attn", None), _READABLE)


def score_patches(
    model: Any, read: Callable[[Tensor], Tensor], view: Tensor, ranking: Ranking, targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the logits [B, classes] and the patch scores [B, K] of one forward; see `SubsetViT.forward_scores`.

    Args:
        model: the timm model that `read` runs; its last block must be computed for every token.
        read: function that runs a forward on `view` and returns logits [B, classes].
        view: whole images [B, C, H, W] or patches [B, K, C, p, p], whichever `read` takes.
        ranking: one that `resolve_ranking` returns.
        targets: int64 [B], the classes whose logits `gradient_activation` takes gradients of; other rankings ignore
            them, and None will do.
    """
    prefix = model.num_prefix_tokens
    match ranking:
        case "gradient_activation":
            assert targets is not None, "a gradient is that of a target"
            scores = gradient_times(lambda: read(view.detach()), model.blocks[-1], targets)
            return read(view), scores[:, num_prefix_in_blocks(model) :]
        case "pool_attention":
            with tokens_entering(model.attn_pool) as captured:
                logits = read(view)
            pooled = captured[0][: len(view)]
            patches_only = not getattr(model, "pool_include_prefix", True)
            return logits, pool_attention(model.attn_pool, pooled)[:, 0 if patches_only else prefix :]
    with attention_probabilities(model) as captured:
        logits = read(view)
    if ranking == "cls_attention":
        return logits, cls_attention(captured[0], prefix)
    return logits, captured[0].mean(dim=1)[:, prefix:, prefix:].mean(dim=1)


@contextmanager
def attention_probabilities(model: Any) -> Iterator[list[Tensor]]:
    """Capture the attention of a model's reading block [B, heads, P + K, P + K], after softmax, detached.

    Each forward inside the context appends it to the list. The fused kernel never computes that matrix, so the
    block's attention is run a second time without gradients; the pass that the image is optimized by stays the same
    as at every other step.
    """
    attention: Any = reading_block(model).attn
    captured: list[Tensor] = []

    def run_unfused(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Tensor) -> None:
        fused = attention.fused_attn
        attention.fused_attn = False
        handle = attention.attn_drop.register_forward_hook(lambda _module, _args, matrix: captured.append(matrix))
        try:
            with torch.no_grad():
                module.forward(*args, **kwargs)
        finally:
            handle.remove()
            attention.fused_attn = fused

    handle = attention.register_forward_hook(run_unfused, with_kwargs=True)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def tokens_entering(module: nn.Module) -> Iterator[list[Tensor]]:
    """Capture the tokens [B, S, D] that enter a module, detached: each forward inside the context appends them."""
    captured: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: captured.append(args[0].detach()))
    try:
        yield captured
    finally:
        handle.remove()


def cls_attention(attention: Tensor, num_prefix_tokens: int) -> Tensor:
    """Return the CLS token's attention to the patches [B, K], mean over heads, of attention [B, heads, R, P + K]."""
    return attention.detach().mean(dim=1)[:, 0, num_prefix_tokens:]


@torch.no_grad()
def pool_attention(pool: Any, tokens: Tensor) -> Tensor:
    """Return the attention of the latent queries of an `AttentionPoolLatent`, mean over heads and queries.

    Args:
        pool: an `AttentionPoolLatent` without a position embedding of its own.
        tokens: the tokens that it pools, [B, S, D].

    Returns:
        Attention [B, S]; each row sums to 1.
    """
    heads = (pool.num_heads, pool.head_dim)
    query = pool.q_norm(pool.q(pool.latent).unflatten(-1, heads).transpose(1, 2))
    keys = pool.kv(tokens).unflatten(-1, (2, *heads))[:, :, 0].transpose(1, 2)
    attention = (query * pool.scale) @ pool.k_norm(keys).transpose(-2, -1)
    return attention.softmax(dim=-1).mean(dim=(1, 2))


def gradient_times(read: Callable[[], Tensor], module: nn.Module, targets: Tensor) -> Tensor:
    """Return |gradient × activation| [B, S] of each target's logit at a module's input, summed over the width.

    Args:
        read: function that runs a forward through the module, from inputs that need no gradient, and returns logits [B,
            classes].
        module: a module that takes tokens [B, S, D] as its first argument.
        targets: int64 [B], the class of each image whose logit is used.
    """
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # Ends the backward pass here: gradients further back are not needed.
        leaves.append(args[0].detach().requires_grad_())
        return leaves[-1], *args[1:]

    handle = module.register_forward_pre_hook(cut)
    try:
        with torch.enable_grad():
            logits = read()
            gradient = target_gradient(logits, targets, leaves[0])
    finally:
        handle.remove()
    return (gradient * leaves[0].detach()).abs().sum(dim=-1)


def target_gradient(logits: Tensor, targets: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of each image's target logit with respect to the leaf [B, ...], in its shape."""
    return torch.autograd.grad(logits.float().gather(1, targets.unsqueeze(1)).sum(), leaf)[0]
