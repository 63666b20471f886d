"""Run a timm ViT on any subset of its patches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.vit.families import check_family, num_prefix_in_blocks
from pipeline.vit.last_block import last_block, num_tokens_read, pad_rows
from pipeline.vit.logits import count_logits
from pipeline.vit.ranking import Ranking, cls_attention, resolve_ranking, score_patches


class TokenSubset(nn.Module):
    """Gathers patch tokens in a model's `patch_drop` slot, after the position embedding.

    Args:
        num_prefix_tokens: CLS, distillation and register tokens, which are always kept; some families have none.
        with_indices: whether to return `(tokens, keep_indices)`, as `timm.models.eva.Eva` expects of the slot.

    Attributes:
        keep_indices: int64 [B, K], row-major patch numbers; None keeps every token.
    """

    def __init__(self, num_prefix_tokens: int, *, with_indices: bool = False) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.with_indices = with_indices
        self.keep_indices: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """Gather tokens [B, P + N, D] to [B, P + K, D]."""
        kept = tokens
        if self.keep_indices is not None:
            prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
            index = self.keep_indices.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
            kept = torch.cat([prefix, patches.gather(1, index)], dim=1)
        return (kept, self.keep_indices) if self.with_indices else kept


def fill_slot(model: Any) -> TokenSubset:
    """Put a `TokenSubset` in the slot of a model that passes `check_family`, and return it.

    The caller chooses the patches: a model that drops patches at random in training must not drop more of them.
    """
    slot = TokenSubset(num_prefix_in_blocks(model), with_indices=isinstance(model, Eva))
    model.patch_drop = slot
    return slot


class SubsetViT(nn.Module):
    """A timm ViT, read on all of its patches or on any subset of them.

    If the family allows it, stopped patches are not even embedded: each kept patch is embedded on its own, and the
    position embedding is indexed. Otherwise (rotary positions) tokens are gathered in timm's `patch_drop` slot.

    Shapes: B batch, N patches of a whole image, K patches read, P prefix tokens, D width, p patch side in pixels.

    Raises:
        ModelError: the model's family cannot be run on a token subset, or its head does not return logits; the message
            says why.
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
        self.num_classes: int = count_logits(model)
        self.embed_dim: int = self.model.embed_dim
        self.embeds_subsets = _embeds_subsets(model)
        # Leading tokens that the last block is computed for; 0 for all tokens.
        self.tokens_read = num_tokens_read(model)
        self._slot = fill_slot(model)

    def forward(self, images: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Return logits [B, classes] of normalized images [B, C, H, W] at `keep_indices` int64 [B, K] (None: all)."""
        return self._head(self._features(images, keep_indices))

    def forward_tokens(self, images: Tensor, keep_indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [B, classes] and tokens after the final norm [B, P + K, D], in the order of `keep_indices`."""
        tokens = self._features(images, keep_indices)
        return self._head(tokens), tokens

    def read_by_patches(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] of all patches of normalized images [B, C, H, W], on the way that subsets take."""
        everything = torch.arange(self.num_patches, device=images.device).expand(len(images), -1)
        if not self.embeds_subsets:
            return self(images, everything)
        return self.forward_patches(self._gather_patches(images, everything), everything)

    def forward_patches(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Return logits [B, classes] of patches [B, K, C, p, p] that lie at `positions` int64 [B, K] of the grid.

        Only if `embeds_subsets` is true. The last block is computed only for the tokens that the classifier reads.
        """
        return self._read_patches(patches, positions)[0]

    def forward_patches_scores(
        self, patches: Tensor, positions: Tensor, *, ranking: Ranking | None = None, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward_scores` does, for patches already cut out; see `forward_patches`."""
        ranking = ranking or resolve_ranking(self.model)
        if ranking == "cls_attention" and self.tokens_read:
            logits, attention = self._read_patches(patches, positions)
            assert attention is not None
            return logits, cls_attention(attention, self.num_prefix_tokens)
        with self._whole_last_block():
            return score_patches(self.model, lambda p: self._read_patches(p, positions)[0], patches, ranking, targets)

    def forward_scores(
        self,
        images: Tensor,
        keep_indices: Tensor | None = None,
        *,
        ranking: Ranking | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits [B, classes] and patch scores [B, K], in the order of `keep_indices`.

        By ranking, a patch's score is:

        - `cls_attention`: the CLS token's attention to it in the last block, mean over heads (SMI, semantic patch
          identification; Hu et al., ICML 2024, section 3).
        - `pool_attention`: the attention of the latent query that pools the tokens, mean over heads.
        - `attention_received`: the last block's attention to it, mean over heads and over the patches that attend;
          prefix tokens do not count, because the classifier averages without them.
        - `gradient_activation`: |gradient of the target's logit × activation| at its token's entry to the last block,
          summed over the width; it takes one more forward pass, and the last block's backward.

        Args:
            images: normalized images [B, C, H, W].
            keep_indices: int64 [B, K], the patches to read; None for all.
            ranking: a ranking that `resolve_ranking` returned; by default the one that `auto` chooses.
            targets: int64 [B], the class of each image, which `gradient_activation` needs; other rankings ignore it.
        """
        ranking = ranking or resolve_ranking(self.model)
        return score_patches(self.model, lambda x: self(x, keep_indices), images, ranking, targets)

    @contextmanager
    def _whole_last_block(self) -> Iterator[None]:
        """Compute the whole last block inside the context, so that hooks see it."""
        tokens_read, self.tokens_read = self.tokens_read, 0
        try:
            yield
        finally:
            self.tokens_read = tokens_read

    def _read_patches(self, patches: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits and, if the last block is computed in part, the attention of the tokens it is computed for."""
        if not self.tokens_read:
            return self._head(self._patch_features(patches, positions)), None
        model = self.model
        tokens = model.norm_pre(self._embed(patches, positions))
        tokens, attention = last_block(model.blocks[-1], model.blocks[:-1](tokens), self.tokens_read)
        return self._head(model.norm(tokens)), attention

    def _head(self, tokens: Tensor) -> Tensor:
        """Return logits [B, classes] of the tokens after the final norm, rounded alike in batches of any size."""
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
        """Cut images [B, C, H, W] into their kept patches [B, K, C, p, p]."""
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
        """Return prefix and patch tokens with their position embedding [B, P + K, D]."""
        model = self.model
        projection = model.patch_embed.proj
        tokens = F.linear(patches.flatten(2), projection.weight.flatten(1), projection.bias)
        tokens = model.patch_embed.norm(tokens)
        positional = model.pos_embed[0]
        # The position embedding covers the prefix tokens too, or, with `no_embed_class`, only the patches.
        offset = positional.shape[0] - self.num_patches
        tokens = tokens + positional[offset:][positions]
        learned = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        learned = [token for token in learned if token is not None]
        if learned:
            prefix = torch.cat(learned, dim=1)
            if offset:
                prefix = prefix + positional[:offset]
            tokens = torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return model.pos_drop(tokens)

    @contextmanager
    def attention_outputs(self) -> Iterator[list[Tensor]]:
        """Capture every block's attention @ value [B, K, d], mean over heads; each forward appends it."""
        captured: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...], heads: int) -> None:
            captured.append(args[0].unflatten(-1, (heads, -1)).mean(dim=2)[:, self.num_prefix_tokens :])

        handles = []
        for block in self.model.blocks:
            attention = block.attn
            handles.append(attention.proj.register_forward_pre_hook(lambda m, a, h=attention.num_heads: keep(m, a, h)))
        try:
            with self._whole_last_block():
                yield captured
        finally:
            for handle in handles:
                handle.remove()


def _embeds_subsets(model: Any) -> bool:
    """Return whether patches can be embedded one by one, without the other patches."""
    if not isinstance(model, VisionTransformer):
        return False
    embed: Any = model.patch_embed
    own_embedding = type(model)._pos_embed in (VisionTransformer._pos_embed, VisionTransformerDistilled._pos_embed)
    # A subclass that adds prompts, or a model with an adapter in place of a layer, needs its own forward.
    own_forward = type(model).forward_features is VisionTransformer.forward_features
    if not own_forward or type(embed.proj) is not nn.Conv2d:
        return False
    return own_embedding and embed.proj.kernel_size == embed.proj.stride and model.pos_embed is not None
