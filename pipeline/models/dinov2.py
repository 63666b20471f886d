"""DINOv2's classifiers, which read the class token and the mean of the patch tokens (Oquab et al., TMLR 2024).

timm has the backbones, but no head that reads both. Importing this module makes the two models known to timm.
"""

from typing import Any

import torch
from timm.layers import SwiGLUPacked
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

# Their names in timm's list of models.
DINOV2 = "vit_base_patch14_dinov2_classifier"
DINOV2_SWIGLU = "vit_base_patch14_dinov2_swiglu_classifier"


class Dinov2Classifier(VisionTransformer):
    """A ViT whose classifier reads the class token beside the mean of the patch tokens, both after the last norm.

    Args:
        arguments: arguments of timm's `VisionTransformer`; `global_pool` and `fc_norm` are set here.
    """

    def __init__(self, **arguments: Any) -> None:
        # "avg" tells callers that the classifier needs every patch token of the last block.
        super().__init__(**{**arguments, "global_pool": "avg", "fc_norm": False})
        self.reset_classifier(self.num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Raises:
            ValueError: `global_pool` asks for other tokens.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"DINOv2's classifier reads the class token and the mean, not global_pool {global_pool!r}")
        self.num_classes = num_classes
        like = self.patch_embed.proj.weight
        head = nn.Linear(2 * self.embed_dim, num_classes, device=like.device, dtype=like.dtype) if num_classes else None
        self.head = head or nn.Identity()

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Return the class token beside the mean of the patch tokens, [B, 2 * D], given tokens [B, P + N, D]."""
        return torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(dim=1)], dim=1)


_CONFIG = {
    **{"num_classes": 1000, "input_size": (3, 518, 518), "crop_pct": 1.0, "interpolation": "bicubic"},
    **{"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    **{"first_conv": "patch_embed.proj", "classifier": "head"},
}
# Read by timm's `register_model`.
default_cfgs = generate_default_cfgs({DINOV2: _CONFIG, DINOV2_SWIGLU: _CONFIG})


@register_model
def vit_base_patch14_dinov2_classifier(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Make a ViT-B/14 with DINOv2's classifier."""
    return _build(DINOV2, pretrained, arguments)


@register_model
def vit_base_patch14_dinov2_swiglu_classifier(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Make a ViT-B/14 with DINOv2's classifier and gated MLPs, as its largest model has."""
    return _build(DINOV2_SWIGLU, pretrained, {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, **arguments})


def _build(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    shape = {"img_size": 518, "patch_size": 14, "embed_dim": 768, "depth": 12, "num_heads": 12, "init_values": 1e-5}
    arguments = {**shape, **arguments}
    return build_model_with_cfg(
        Dinov2Classifier, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **arguments
    )
