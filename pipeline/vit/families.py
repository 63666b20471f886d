"""Find out which timm models can be run on a subset of their tokens, and why the others cannot."""

from typing import Any

from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.errors import ModelError
from pipeline.trial import NO_CLASSIFIER, has_classifier

# Families that can be run on a subset of their tokens; `SubsetViT` says how.
_FAMILIES = (VisionTransformer, Eva)


def check_family(model: nn.Module) -> None:
    """Refuse a model that cannot be run on a subset of its tokens.

    Raises:
        ModelError: the model cannot; the message gives its family and the reason.
    """
    reason = refusal(model)
    if reason is not None:
        raise ModelError(f"{type(model).__name__} cannot be run on a token subset: {reason}")


def refusal(model: Any) -> str | None:
    """Return why a model cannot be run on a subset of its tokens; None if it can."""
    # Other models with a `patch_drop` (SAM, NaFlex, Hiera) use it only in training, or attend in windows.
    if not isinstance(model, _FAMILIES):
        if not hasattr(model, "patch_drop"):
            return "it has no patch_drop slot, and its attention windows or pooling need every token"
        return "it does not use its patch_drop slot in evaluation as a ViT does"
    if not has_classifier(model):
        return NO_CLASSIFIER
    if not isinstance(model.patch_embed, PatchEmbed):
        return f"its patches are embedded by a {type(model.patch_embed).__name__}, not patch by patch"
    if getattr(getattr(model, "attn_pool", None), "pos_embed", None) is not None:
        return "its attention pool adds a position to every patch"
    return _geometry_refusal(model.patch_embed)


def num_prefix_in_blocks(model: Any) -> int:
    """Return how many tokens run through a model's `blocks` before the patch tokens."""
    return model.num_prefix_tokens


def reading_block(model: Any) -> nn.Module:
    """Return the block whose attention makes the classifier's input."""
    return model.blocks[-1]


def _geometry_refusal(embed: Any) -> str | None:
    if embed.img_size is None or embed.img_size[0] != embed.img_size[1]:
        return f"its images are not square: {embed.img_size}"
    if embed.patch_size[0] != embed.patch_size[1]:
        return f"its patches are not square: {embed.patch_size}"
    if embed.img_size[0] % embed.patch_size[0]:
        return f"its image size {embed.img_size[0]} is not a multiple of its patch size {embed.patch_size[0]}"
    return None
