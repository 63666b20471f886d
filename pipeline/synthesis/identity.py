"""What a dataset is: everything that decides its bytes, the digest of that, and the seeds that derive from it."""

import hashlib
import json
from typing import Any

import timm.models
from torch import nn

from pipeline.config import digest, to_dict
from pipeline.inversion import InversionConfig
from pipeline.models import LoadedModel
from pipeline.synthesis.classes import list_classes
from pipeline.synthesis.networks import Networks
from pipeline.synthesis.shards import SynthesisConfig
from pipeline.vit.families import refusal
from pipeline.vit.ranking import resolve_ranking

# Settings that came later: left out where they are off, so that datasets made before keep their digest.
_LATER = {
    "rebirth": None,
    "adaptive_end": None,
    "adversarial": 0.0,
    "ranking": "auto",
    "mask_only": False,
    "compile": False,
}


def identity(config: SynthesisConfig, networks: Networks) -> dict[str, Any]:
    """Everything that decides the bytes of the parts, and nothing else: not output, pool sizes or logging."""
    teacher, feature_model, student = networks.teacher, networks.feature_model, networks.student
    return {
        "teacher": _model_identity(teacher),
        "feature_model": None if feature_model is None else _model_identity(feature_model),
        **({} if student is None else {"student": _model_identity(student)}),
        "class_names": teacher.class_names,
        "classes": list_classes(config.classes, len(teacher.class_names)),
        "images_per_class": config.images_per_class,
        "shard_size": config.shard_size,
        "seed": config.seed,
        "inversion": _inversion_identity(config.inversion),
        **_ranking_identity(config.inversion, networks.teacher.model),
        "torch_threads": config.pool.cpus_per_actor,
    }


def _inversion_identity(inversion: InversionConfig) -> dict[str, Any]:
    values = to_dict(inversion)
    return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}


def _ranking_identity(inversion: InversionConfig, model: nn.Module) -> dict[str, str]:
    """How patches are ranked, where that is not by the CLS token as in every dataset of earlier versions."""
    if inversion.mask_only or refusal(model) is not None:
        return {}
    ranking = resolve_ranking(model, inversion.ranking)
    return {} if ranking == "cls_attention" else {"ranking": ranking}


def _model_identity(loaded: LoadedModel) -> dict[str, Any]:
    # Not the name or the path: the same weights from another place make the same images.
    return {
        "weights": loaded.digest,
        "architecture": getattr(loaded.model, "pretrained_cfg", {}).get("architecture"),
        "model_args": _plain_arguments(loaded.model),
        "input_size": list(loaded.input_size),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
    }


def _plain_arguments(model: nn.Module) -> dict[str, Any]:
    """What timm made a model with, from the config or from its folder; classes and functions by their names."""
    arguments = timm.models.get_model_args(model)
    return json.loads(json.dumps(arguments, default=lambda value: getattr(value, "__qualname__", type(value).__name__)))


def config_digest(config: SynthesisConfig, networks: Networks) -> str:
    """SHA-256, in hex, of what decides the dataset."""
    return digest(identity(config, networks))


def image_seed(config_digest: str, shard_id: int, image_id: str) -> int:
    """The seed of one image, 63 bits."""
    content = f"{config_digest}/{shard_id}/{image_id}".encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1
