"""A timm ViT that reads any subset of its patches. What the project knows of timm's internals is here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.last_block import last_block, num_tokens_read, pad_rows


class TokenSubset(nn.Module):
    """Gathers patch tokens in a model's `patch_drop` slot, after the position embedding.

    Args:
        num_prefix_tokens: CLS, distillation and register tokens, which always pass.
        with_indices: the slot's owner wants `(tokens, keep_indices)` back, as `timm.models.eva.Eva` does.

    Attributes:
        keep_indices: int64 [B, K], row-major patch numbers; None lets every token pass.
    """

    def __init__(self, num_prefix_tokens: int, *, with_indices: bool = False) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.with_indices = with_indices
        self.keep_indices: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """[B, P + N, D] to [B, P + K, D]."""
        kept = tokens
        if self.keep_indices is not None:
            prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
            index = self.keep_indices.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
            kept = torch.cat([prefix, patches.gather(1, index)], dim=1)
        return (kept, self.keep_indices) if self.with_indices else kept


class SubsetViT(nn.Module):
    """A timm ViT with a CLS token, read on all of its patches or on any subset of them.

    Where the family allows it, stopped patches are not even embedded: the embedding is a linear map of each patch, and
    the position embedding is indexed. Otherwise (rotary positions) tokens are gathered in timm's `patch_drop` slot.

    Shapes: B batch, N patches of a whole image, K patches read, P prefix tokens, D width, p patch side in pixels.

    Raises:
        ModelError: the model's family cannot be run on a token subset; the message says why.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_family(model)
        self.model: Any = model
        embed: Any = model.patch_embed
        self.image_size: int = embed.img_size[0]
        self.patch_size: int = embed.patch_size[0]
        self.grid_size: int = embed.grid_size[0]
        self.num_patches: int = self.grid_size**2
        self.num_prefix_tokens: int = self.model.num_prefix_tokens
        self.in_chans: int = embed.proj.in_channels
        self.num_classes: int = self.model.num_classes
        self.embed_dim: int = self.model.embed_dim
        self.embeds_subsets = _embeds_subsets(model)
        # Leading tokens that the last block is run for; 0 runs it whole.
        self.tokens_read = num_tokens_read(model)
        self._slot = TokenSubset(self.num_prefix_tokens, with_indices=isinstance(model, Eva))
        if not self.embeds_subsets:
            self.model.patch_drop = self._slot

    def forward(self, images: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of normalised images [B, C, H, W], read at `keep_indices` int64 [B, K] (None: all)."""
        return self._head(self._features(images, keep_indices))

    def forward_tokens(self, images: Tensor, keep_indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, classes], and the tokens after the final norm [B, P + K, D], in the order of `keep_indices`."""
        tokens = self._features(images, keep_indices)
        return self._head(tokens), tokens

    def forward_patches(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, classes] of patches [B, K, C, p, p] that lie at `positions` int64 [B, K] of the grid.

        Only where `embeds_subsets` is true. Of the last block, no more is computed than the classifier reads.
        """
        return self._read_patches(patches, positions)[0]

    def forward_patches_scores(self, patches: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`forward_scores` for patches already cut out; see `forward_patches`."""
        if not self.tokens_read:
            with self.attention_probabilities() as captured:
                logits, _ = self._read_patches(patches, positions)
            return logits, self._cls_attention(captured[0])
        logits, attention = self._read_patches(patches, positions)
        assert attention is not None
        return logits, self._cls_attention(attention)

    def forward_scores(self, images: Tensor, keep_indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] and the patch scores [B, K] of the same forward, in the order of `keep_indices`.

        A patch's score is the CLS token's attention to it in the last block, mean over heads (SMI, semantic patch
        identification; Hu et al., ICML 2024, section 3).
        """
        with self.attention_probabilities() as captured:
            logits = self(images, keep_indices)
        return logits, self._cls_attention(captured[0])

    def _cls_attention(self, attention: Tensor) -> Tensor:
        return attention.detach().mean(dim=1)[:, 0, self.num_prefix_tokens :]

    def _read_patches(self, patches: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and where not the whole last block is run, the attention of the tokens that the classifier reads."""
        model = self.model
        tokens = model.norm_pre(self._embed(patches, positions))
        if not self.tokens_read:
            return self._head(model.norm(model.blocks(tokens))), None
        tokens, attention = last_block(model.blocks[-1], model.blocks[:-1](tokens), self.tokens_read)
        return self._head(model.norm(tokens)), attention

    def _head(self, tokens: Tensor) -> Tensor:
        """Logits [B, classes] of the tokens after the final norm, rounded alike in batches of any size."""
        return self.model.forward_head(pad_rows(tokens))[: len(tokens)]

    def _features(self, images: Tensor, keep_indices: Tensor | None) -> Tensor:
        if keep_indices is None:
            return self.model.forward_features(images)
        if self.embeds_subsets:
            return self._patch_features(self._gather_patches(images, keep_indices), keep_indices)
        self._slot.keep_indices = keep_indices
        try:
            return self.model.forward_features(images)
        finally:
            self._slot.keep_indices = None

    def _gather_patches(self, images: Tensor, keep_indices: Tensor) -> Tensor:
        """[B, C, H, W] to [B, K, C, p, p]."""
        batch, channels = images.shape[:2]
        grid, side = self.grid_size, self.patch_size
        patches = images.reshape(batch, channels, grid, side, grid, side).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, grid * grid, channels * side * side)
        index = keep_indices.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        return patches.gather(1, index).unflatten(-1, (channels, side, side))

    def _patch_features(self, patches: Tensor, positions: Tensor) -> Tensor:
        model = self.model
        tokens = self._embed(patches, positions)
        return model.norm(model.blocks(model.norm_pre(tokens)))

    def _embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Prefix and patch tokens with their positions [B, P + K, D]."""
        model = self.model
        projection = model.patch_embed.proj
        tokens = F.linear(patches.flatten(2), projection.weight.flatten(1), projection.bias)
        learned = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        prefix = torch.cat([token for token in learned if token is not None], dim=1)
        positional = model.pos_embed[0]
        # The position embedding covers the prefix tokens too, or (`no_embed_class`) the patches alone.
        offset = positional.shape[0] - self.num_patches
        if offset:
            prefix = prefix + positional[:offset]
        tokens = tokens + positional[offset:][positions]
        return model.pos_drop(torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1))

    @contextmanager
    def attention_probabilities(self) -> Iterator[list[Tensor]]:
        """Within it, each forward appends the last block's attention [B, heads, P + K, P + K], after softmax, detached.

        The fused kernel never forms that matrix, so the block's attention is run once more, without gradients, for it
        alone: the forward and backward that make the image stay the same as on every other step.
        """
        attention = self.model.blocks[-1].attn
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
    def attention_outputs(self) -> Iterator[list[Tensor]]:
        """Within it, each forward appends every block's attention @ value, mean over heads, of patches [B, K, d]."""
        captured: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...], heads: int) -> None:
            captured.append(args[0].unflatten(-1, (heads, -1)).mean(dim=2)[:, self.num_prefix_tokens :])

        handles = []
        for block in self.model.blocks:
            attention = block.attn
            handles.append(attention.proj.register_forward_pre_hook(lambda m, a, h=attention.num_heads: keep(m, a, h)))
        tokens_read, self.tokens_read = self.tokens_read, 0
        try:
            yield captured
        finally:
            self.tokens_read = tokens_read
            for handle in handles:
                handle.remove()


def check_family(model: nn.Module) -> None:
    """Refuse a model that cannot be run on a subset of its tokens.

    Raises:
        ModelError: with the family's name and the reason.
    """
    family = type(model).__name__
    reason = _refusal(model)
    if reason is not None:
        raise ModelError(f"{family} cannot be run on a token subset: {reason}")


def _refusal(model: Any) -> str | None:
    """Why a family is refused; None where it is not."""
    # Others with a slot of that name (SAM, NaFlex) use it in training alone, or attend in windows.
    if not isinstance(model, VisionTransformer | Eva):
        if not hasattr(model, "patch_drop"):
            return "it has no patch_drop slot, every token takes part in its attention windows or pooling"
        return "its patch_drop slot is not used in evaluation as a ViT's is"
    if getattr(model, "cls_token", None) is None:
        return "it has no CLS token whose attention could rank the patches"
    if not model.num_classes:
        return "it has no classifier head (num_classes is 0)"
    if not isinstance(model.patch_embed, PatchEmbed):
        return f"its patches are embedded by a {type(model.patch_embed).__name__}, not patch by patch"
    return _geometry_refusal(model.patch_embed) or _attention_refusal(model)


def _geometry_refusal(embed: Any) -> str | None:
    if embed.img_size is None or embed.img_size[0] != embed.img_size[1]:
        return f"its images are not square: {embed.img_size}"
    if embed.patch_size[0] != embed.patch_size[1]:
        return f"its patches are not square: {embed.patch_size}"
    if embed.img_size[0] % embed.patch_size[0]:
        return f"its image size {embed.img_size[0]} is not a multiple of its patch size {embed.patch_size[0]}"
    return None


def _attention_refusal(model: Any) -> str | None:
    if model.attn_pool is not None:
        return "it pools by attention, so its CLS token does not rank the patches"
    for block in model.blocks:
        attention = getattr(block, "attn", None)
        if not all(hasattr(attention, name) for name in ("attn_drop", "fused_attn", "proj", "num_heads")):
            return f"the attention in its {type(block).__name__} cannot be read"
    return None


def _embeds_subsets(model: Any) -> bool:
    """Whether the tokens of some patches can be made without the other patches."""
    own_embedding = type(model)._pos_embed in (VisionTransformer._pos_embed, VisionTransformerDistilled._pos_embed)
    return (
        isinstance(model, VisionTransformer)
        and own_embedding
        and isinstance(model.patch_embed.norm, nn.Identity)
        and model.patch_embed.proj.kernel_size == model.patch_embed.proj.stride
        and model.pos_embed is not None
    )
