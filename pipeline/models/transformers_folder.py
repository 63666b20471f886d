"""Read what the `config.json` of a transformers image classifier says: which timm model it is, with which arguments.

Only ViTs that timm has too. The library itself is not needed, and no code that comes with a folder is run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.models import layouts
from pipeline.models.dinov2 import DINOV2, DINOV2_SWIGLU
from pipeline.models.layouts import Layout

# Values that transformers assumes where a config does not state them. Older configs lack what was added later.
_DEFAULTS: dict[str, Any] = {
    **{"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3, "layer_norm_eps": 1e-12},
    **{"image_size": 224, "patch_size": 16},
}
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# transformers' name of an activation → timm's.
_ACTIVATIONS = {
    **{"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"},
    **{"relu": "relu", "silu": "silu", "swish": "silu"},
}
_VIT = "vit_base_patch16_224"


@dataclass(frozen=True)
class _Kind:
    """A class of transformers.

    Attributes:
        architecture: timm's name of a model of the same family.
        layout: names that transformers gives to its tensors.
        arguments: arguments of timm's model beside those that follow from the folder's config.
        defaults: values that transformers assumes where a config does not state them.
        gated_layout: names of its tensors where the config sets `use_swiglu_ffn`; None if the class has no such MLPs.
        processor: what prepares images for it where a folder does not say so, see `read_processor`.
    """

    architecture: str
    layout: Layout
    arguments: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    gated_layout: Layout | None = None
    processor: str = "ViT"


_DINOV2_DEFAULTS = {"layer_norm_eps": 1e-6, "mlp_ratio": 4, "num_register_tokens": 4, "use_swiglu_ffn": False}
_SIGLIP_DEFAULTS = {
    **{"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 768, "intermediate_size": 3072},
    **{"num_hidden_layers": 12, "num_attention_heads": 12},
}
_KINDS = {
    "ViTForImageClassification": _Kind(_VIT, layouts.VIT),
    "DeiTForImageClassification": _Kind("deit_base_patch16_224", layouts.DEIT, {"reg_tokens": 1}, processor="DeiT"),
    "DeiTForImageClassificationWithTeacher": _Kind(
        "deit_base_distilled_patch16_224", layouts.DEIT_DISTILLED, processor="DeiT"
    ),
    "Dinov2ForImageClassification": _Kind(
        DINOV2, layouts.DINOV2, defaults=_DINOV2_DEFAULTS, gated_layout=layouts.DINOV2_SWIGLU, processor="Bit"
    ),
    "Dinov2WithRegistersForImageClassification": _Kind(
        DINOV2, layouts.REGISTERS, {"no_embed_class": True}, _DINOV2_DEFAULTS, layouts.REGISTERS_SWIGLU, "Bit"
    ),
    # The classifier reads the mean of the patch tokens after the last norm, not the attention pool.
    "SiglipForImageClassification": _Kind(
        _VIT,
        layouts.SIGLIP,
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        _SIGLIP_DEFAULTS,
        processor="Siglip",
    ),
}


@dataclass(frozen=True)
class TransformersClassifier:
    """A classifier of transformers in timm's terms.

    Attributes:
        architecture: timm's name of a model of the same family, of any size.
        arguments: arguments that timm's model is made with, as JSON types, except `num_classes` and `in_chans`.
        num_classes: number of classes.
        in_chans: number of channels of its images.
        layout: names that transformers gives to its tensors.
        epsilon: number that its LayerNorms add to the variance.
        processor: class that prepares its images, where its folder does not name one.
    """

    architecture: str
    arguments: dict[str, Any]
    num_classes: int
    in_chans: int
    layout: Layout
    epsilon: float
    processor: str

    def settings(self) -> dict[str, Any]:
        """Return the settings of `ModelConfig` that make the model."""
        return {
            "name": self.architecture,
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "model_args": self.arguments,
        }


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` was written by transformers, not by timm."""
    return "architecture" not in config and ("architectures" in config or "model_type" in config)


def describe_classifier(config: Mapping[str, Any]) -> TransformersClassifier:
    """Return the timm model that a `config.json` of transformers describes.

    Raises:
        ValueError: it describes no model that is converted, or lacks an entry; the message is the predicate of a
            sentence about the config.
    """
    kind = _kind(config)
    stated = _stated(kind, config)
    width, activation = stated["hidden_size"], stated["hidden_act"]
    arguments = {
        "img_size": stated["image_size"],
        "patch_size": stated["patch_size"],
        "embed_dim": width,
        "depth": stated["num_hidden_layers"],
        "num_heads": stated["num_attention_heads"],
        "mlp_ratio": _ratio(stated["intermediate_size"], width),
        "qkv_bias": stated["qkv_bias"],
        # A gated MLP has an activation of its own.
        **({} if kind.architecture == DINOV2_SWIGLU else {"act_layer": _ACTIVATIONS[activation]}),
        **({"reg_tokens": stated["num_register_tokens"]} if kind.arguments.get("no_embed_class") else {}),
        **kind.arguments,
    }
    return TransformersClassifier(
        architecture=kind.architecture,
        arguments=arguments,
        num_classes=_num_classes(config),
        in_chans=stated["num_channels"],
        layout=kind.layout,
        epsilon=stated["layer_norm_eps"],
        processor=kind.processor,
    )


def _kind(config: Mapping[str, Any]) -> _Kind:
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and len(named) == 1 else None
    if not isinstance(name, str) or name not in _KINDS:
        what = name if isinstance(name, str) else config.get("model_type")
        raise ValueError(f"is that of {what!r:.60} of transformers; converted are {', '.join(_KINDS)}")
    kind = _KINDS[name]
    if config.get("use_swiglu_ffn") and kind.gated_layout is not None:
        return replace(kind, architecture=DINOV2_SWIGLU, layout=kind.gated_layout)
    return kind


def _stated(kind: _Kind, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config states of the model's shape, completed and checked.

    Raises:
        ValueError: a size is missing or impossible, or the activation is not known.
    """
    nested = config.get("vision_config")
    given = nested if isinstance(nested, Mapping) else config
    stated = {**_DEFAULTS, **kind.defaults, **{name: value for name, value in given.items() if value is not None}}
    if _is_size(stated.get("hidden_size")) and "mlp_ratio" in kind.defaults:
        stated["intermediate_size"] = _hidden_width(kind, stated)
    if missing := [name for name in _SIZES if not _is_size(stated.get(name))]:
        raise ValueError(f"states no {missing[0]} that is a whole number above 0: {stated.get(missing[0])!r:.40}")
    for name in ("image_size", "patch_size"):
        edges = stated[name] if isinstance(stated[name], list) else [stated[name]]
        if not edges or not all(map(_is_size, edges)):
            raise ValueError(f"states {stated[name]!r:.40} as {name}")
    if not _is_count(registers := stated.get("num_register_tokens", 0)):
        raise ValueError(f"states {registers!r:.40} as num_register_tokens")
    for name, kinds in (("layer_norm_eps", (float,)), ("num_channels", (int,)), ("qkv_bias", (bool,))):
        if not isinstance(stated[name], kinds):
            raise ValueError(f"states {stated[name]!r:.40} as {name}")
    if stated["hidden_act"] not in tuple(_ACTIVATIONS):
        raise ValueError(f"states the activation {stated['hidden_act']!r:.60}; converted are {', '.join(_ACTIVATIONS)}")
    return stated


def _hidden_width(kind: _Kind, stated: Mapping[str, Any]) -> int:
    """Return the width of DINOv2's MLPs; a gated one has both halves in one layer, each a multiple of 8."""
    hidden = int(stated["hidden_size"] * stated["mlp_ratio"])
    return hidden if kind.architecture == DINOV2 else 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8)


def _num_classes(config: Mapping[str, Any]) -> int:
    """Return the number of classes; transformers writes it only as names, and leaves out its default of two."""
    names = config.get("id2label") or config.get("label2id")
    if isinstance(names, Mapping):
        return len(names)
    count = config.get("num_labels", 2)
    if not _is_size(count):
        raise ValueError(f"states {count!r:.40} as num_labels")
    return count


def _ratio(hidden: int, width: int) -> float:
    """Return the factor by which timm multiplies the width and rounds down, so that `hidden` comes out."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _is_size(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
