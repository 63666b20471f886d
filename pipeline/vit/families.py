"""Tell which timm models can be run on a subset of their tokens, and why the others cannot."""

from typing import Any

from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.errors import ModelError


def check_family(model: nn.Module) -> None:
    """Refuse a model that cannot be run on a subset of its tokens.

    Raises:
        ModelError: with the family's name and the reason.
    """
    reason = refusal(model)
    if reason is not None:
        raise ModelError(f"{type(model).__name__} cannot be run on a token subset: {reason}")


def refusal(model: Any) -> str | None:
    """Why a model is refused; None where it is not."""
    # Others with a slot of that name (SAM, NaFlex, Hiera) use it in training alone, or attend in windows.
    if not isinstance(model, VisionTransformer | Eva):
        if not hasattr(model, "patch_drop"):
            return "it has no patch_drop slot, every token takes part in its attention windows or pooling"
        return "its patch_drop slot is not used in evaluation as a ViT's is"
    if not model.num_classes:
        return "it has no classifier head (num_classes is 0)"
    if not isinstance(model.patch_embed, PatchEmbed):
        return f"its patches are embedded by a {type(model.patch_embed).__name__}, not patch by patch"
    if getattr(model.attn_pool, "pos_embed", None) is not None:
        return "its attention pool adds a position to every patch"
    return _geometry_refusal(model.patch_embed)


def _geometry_refusal(embed: Any) -> str | None:
    if embed.img_size is None or embed.img_size[0] != embed.img_size[1]:
        return f"its images are not square: {embed.img_size}"
    if embed.patch_size[0] != embed.patch_size[1]:
        return f"its patches are not square: {embed.patch_size}"
    if embed.img_size[0] % embed.patch_size[0]:
        return f"its image size {embed.img_size[0]} is not a multiple of its patch size {embed.patch_size[0]}"
    return None
