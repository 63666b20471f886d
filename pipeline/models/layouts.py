"""Names of a ViT's tensors in transformers and in torchvision, for each of timm's names."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from pipeline.errors import CheckpointError, first_few

# timm's name → the other library's names in front of `weight` or `bias`, or of a whole tensor. Tensors of several names
# are concatenated along the first axis. `{}` is the number of the block.
Names = Mapping[str, tuple[str, ...]]

_PARTS = ("query", "key", "value")
_TRANSFORMERS: dict[str, tuple[str, ...]] = {
    "cls_token": ("embeddings.cls_token",),
    "dist_token": ("embeddings.distillation_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
    "blocks.{}.attn.qkv": tuple(f"encoder.layer.{{}}.attention.attention.{part}" for part in _PARTS),
    "blocks.{}.attn.proj": ("encoder.layer.{}.attention.output.dense",),
    "norm": ("layernorm",),
}
_VIT = _TRANSFORMERS | {
    "blocks.{}.norm1": ("encoder.layer.{}.layernorm_before",),
    "blocks.{}.norm2": ("encoder.layer.{}.layernorm_after",),
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.intermediate.dense",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.output.dense",),
    # DeiT without the second classifier reads the distillation token as one more token; timm calls that a register.
    "reg_token": ("embeddings.distillation_token",),
}
_DINOV2 = _TRANSFORMERS | {
    "blocks.{}.norm1": ("encoder.layer.{}.norm1",),
    "blocks.{}.norm2": ("encoder.layer.{}.norm2",),
    "blocks.{}.ls1.gamma": ("encoder.layer.{}.layer_scale1.lambda1",),
    "blocks.{}.ls2.gamma": ("encoder.layer.{}.layer_scale2.lambda1",),
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.mlp.fc1",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.mlp.fc2",),
    "reg_token": ("embeddings.register_tokens",),
}
_SWIGLU = _DINOV2 | {
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.mlp.weights_in",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.mlp.weights_out",),
}
_SIGLIP: dict[str, tuple[str, ...]] = {
    "pos_embed": ("embeddings.position_embedding.weight",),
    "patch_embed.proj": ("embeddings.patch_embedding",),
    "blocks.{}.norm1": ("encoder.layers.{}.layer_norm1",),
    "blocks.{}.norm2": ("encoder.layers.{}.layer_norm2",),
    "blocks.{}.attn.qkv": tuple(f"encoder.layers.{{}}.self_attn.{part}_proj" for part in ("q", "k", "v")),
    "blocks.{}.attn.proj": ("encoder.layers.{}.self_attn.out_proj",),
    "blocks.{}.mlp.fc1": ("encoder.layers.{}.mlp.fc1",),
    "blocks.{}.mlp.fc2": ("encoder.layers.{}.mlp.fc2",),
    "norm": ("post_layernorm",),
}
_TORCHVISION: dict[str, tuple[str, ...]] = {
    "cls_token": ("class_token",),
    "pos_embed": ("encoder.pos_embedding",),
    "patch_embed.proj": ("conv_proj",),
    "blocks.{}.norm1": ("encoder.layers.encoder_layer_{}.ln_1",),
    "blocks.{}.norm2": ("encoder.layers.encoder_layer_{}.ln_2",),
    "blocks.{}.attn.proj": ("encoder.layers.encoder_layer_{}.self_attention.out_proj",),
    "blocks.{}.attn.qkv.weight": ("encoder.layers.encoder_layer_{}.self_attention.in_proj_weight",),
    "blocks.{}.attn.qkv.bias": ("encoder.layers.encoder_layer_{}.self_attention.in_proj_bias",),
    "blocks.{}.mlp.fc1": ("encoder.layers.encoder_layer_{}.mlp.0",),
    "blocks.{}.mlp.fc2": ("encoder.layers.encoder_layer_{}.mlp.3",),
    "norm": ("encoder.ln",),
    "head": ("heads.head",),
}


@dataclass(frozen=True)
class Layout:
    """How another library names a classifier's tensors.

    Attributes:
        names: timm's name of a tensor → the other library's names of its parts.
        left_out: beginnings of the names of tensors that the other library's classifier does not read either.
    """

    names: Names
    left_out: tuple[str, ...] = ()

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the other library's names of the tensor that timm calls `name`; none if it has no such tensor."""
        number = re.match(r"blocks\.(\d+)\.", name)
        pattern = re.sub(r"^blocks\.\d+\.", "blocks.{}.", name)
        stem, _, leaf = pattern.rpartition(".")
        found = self.names.get(pattern) or tuple(f"{each}.{leaf}" for each in self.names.get(stem, ()))
        return tuple(each.format(number[1]) if number else each for each in found)


def _classifier(prefix: str, backbone: Names, *left_out: str, **heads: str) -> Layout:
    """Return the layout of a classifier of transformers, from that of its backbone and the names of its heads."""
    names = {name: tuple(f"{prefix}.{each}" for each in sources) for name, sources in backbone.items()}
    return Layout(
        {**names, **{ours: (theirs,) for ours, theirs in (heads or {"head": "classifier"}).items()}},
        tuple(f"{prefix}.{each}" for each in (*left_out, "embeddings.mask_token", "pooler.")),
    )


VIT = _classifier("vit", _VIT)
DEIT = _classifier("deit", _VIT)
DEIT_DISTILLED = _classifier("deit", _VIT, head="cls_classifier", head_dist="distillation_classifier")
DINOV2, DINOV2_SWIGLU = (_classifier("dinov2", names) for names in (_DINOV2, _SWIGLU))
REGISTERS, REGISTERS_SWIGLU = (_classifier("dinov2_with_registers", names) for names in (_DINOV2, _SWIGLU))
SIGLIP = _classifier("vision_model", _SIGLIP, "head.")
TORCHVISION = Layout(_TORCHVISION)
# torchvision's presets for images (`torchvision.transforms._presets.ImageClassification`), in timm's terms: the
# shorter edge becomes 256 pixels, of which the center crop keeps 224. A file of weights does not state it.
TORCHVISION_PREPROCESSING: Mapping[str, Any] = {
    **{"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD},
    **{"interpolation": "bilinear", "crop_pct": 224 / 256, "crop_mode": "center"},
}
# Layers of transformers' blocks as version 5 calls them → as before, and in what it saves. DINOv2's MLPs kept theirs.
_OLDER_ATTENTION = {
    **{f"attention.{new}_proj": f"attention.attention.{old}" for new, old in zip("qkv", _PARTS, strict=True)},
    "attention.o_proj": "attention.output.dense",
}
_OLDER_MLP = {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
_OF_TRANSFORMERS = re.compile(r"(.+\.)?(encoder\.layers?\.\d+\..*attention|embeddings\.patch_embedding)")


def source_names(layout: Layout, names: Iterable[str]) -> set[str]:
    """Return the other library's names of all tensors that timm calls `names`."""
    return {source for name in names for source in layout.sources(name)}


def rename(uri: str, weights: Mapping[str, Tensor], layout: Layout, names: Collection[str]) -> dict[str, Tensor]:
    """Return weights under timm's names; the query, key and value of transformers are joined.

    Args:
        uri: location of the checkpoint, for messages.
        weights: tensors under the other library's names.
        layout: names that the other library gives to each tensor.
        names: names in the timm model's own state dict.

    Raises:
        CheckpointError: a tensor is missing, or one is not the model's; the message names the first ones.
    """
    wanted = source_names(layout, names)
    faults = {
        "lacks": sorted(wanted - set(weights)),
        # A tensor without values, as of no registers, holds nothing to read.
        "has": sorted(
            name for name in set(weights) - wanted if weights[name].numel() and not name.startswith(layout.left_out)
        ),
        "has no counterpart of timm's": sorted(name for name in names if not layout.sources(name)),
    }
    for what, found in faults.items():
        if found:
            rest = " that the model does not read" if what == "has" else ""
            shown = first_few(map(repr, found))
            raise CheckpointError(f"checkpoint {uri!r} {what} {len(found)} tensors{rest}: {shown}")
    renamed = {name: _joined([weights[source] for source in layout.sources(name)]) for name in names}
    positions = renamed["pos_embed"]
    return {**renamed, "pos_embed": positions if positions.ndim == 3 else positions.unsqueeze(0)}


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def add_class_position(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the class token's position to the token itself, for models that embed only the positions of patches."""
    positions = weights["pos_embed"]
    return {**weights, "cls_token": weights["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}


def names_of_transformers(names: Iterable[str]) -> bool:
    """Return whether tensors are named as transformers names those of a ViT."""
    return any(_OF_TRANSFORMERS.match(name) for name in names)


def older_name(name: str) -> str:
    """Return the name in a saved file of a tensor that transformers calls `name` since version 5.

    It goes on to save the older names itself; the newer ones are in what others save of its models.
    """
    older = re.sub(r"^(vit|deit)\.layers\.", r"\1.encoder.layer.", name)
    found = re.fullmatch(r"(\w+\.encoder\.layer\.\d+\.)(.*)(\.\w+)", older)
    if found is None:
        return older
    block, layer, leaf = found.groups()
    names = _OLDER_ATTENTION if block.startswith("dinov2") else _OLDER_ATTENTION | _OLDER_MLP
    return f"{block}{names.get(layer, layer)}{leaf}"


def is_torchvision(weights: Collection[str], names: Collection[str]) -> bool:
    """Return whether weights have the names of torchvision's ViTs, and the model those of timm's."""
    return "conv_proj.weight" in weights and "blocks.0.attn.qkv.weight" in names


def rename_torchvision(uri: str, weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the weights of one of torchvision's ViTs under timm's names.

    Raises:
        CheckpointError: as `rename`.
    """
    newer = {_newer_name(name): value for name, value in weights.items()}
    return rename(uri, newer, TORCHVISION, names)


def _newer_name(name: str) -> str:
    """Return torchvision's name of a tensor of its ViTs that an older file, or one with a classifier put in, has."""
    # Its published files have the older names of the MLP's layers.
    name = name.replace("mlp.linear_1", "mlp.0").replace("mlp.linear_2", "mlp.3")
    # `model.heads = nn.Linear(...)`, as many fine-tune it; the first of a sequence sees the same.
    return re.sub(r"^heads\.(0\.)?(weight|bias)$", r"heads.head.\2", name)
