"""Identity of a dataset: everything that decides its bytes, its digest, and the seeds of its images."""

import json
from typing import Any

import timm.models
from torch import nn

from pipeline.config import digest
from pipeline.hashing import hash_number
from pipeline.inversion import InversionConfig
from pipeline.models import LoadedModel
from pipeline.outputs import identifying_settings
from pipeline.synthesis.classes import list_classes
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.networks import Networks
from pipeline.vit.families import refusal
from pipeline.vit.ranking import resolve_ranking

# Settings that `identity` replaces by facts, and settings that decide only where and how fast a dataset is made.
_EXCLUDED = (
    *("teacher", "feature_model", "student", "classes", "output", "pool", "snapshots", "checkpoint_minutes"),
    *("tracking", "shard_order", "retry_failed", "dry_run"),
)
# This list must never change, see `identifying_settings`.
_RECORDED = frozenset(
    (
        "images_per_class",
        "shard_size",
        "seed",
        "inversion",
        *(
            f"inversion.{name}"
            for name in (
                *("iterations", "lr", "betas", "jitter", "flip", "stop_steps", "stop_fractions", "stop_formula"),
                *("stop_formula.keep_ratio", "stop_formula.by_step", "stop_formula.num_stops"),
                *("adaptive_end.confidence", "adaptive_end.hold_steps", "scope", "class_weight", "tv_l2", "tv_l1"),
                *("l2", "patch_similarity", "feature_prior", "micro_batch", "dtype"),
            )
        ),
    )
)


def identity(config: SynthesisConfig, networks: Networks) -> dict[str, Any]:
    """Return everything that decides the bytes of the parts, and nothing else."""
    teacher, feature_model, student = networks.teacher, networks.feature_model, networks.student
    return {
        "teacher": _model_identity(teacher),
        "feature_model": None if feature_model is None else _model_identity(feature_model),
        # In earlier versions the feature model read images in the teacher's normalization, whatever its own was.
        **({"feature_model_renormalizes": True} if networks.feature_model_renormalizes else {}),
        **({} if student is None else {"student": _model_identity(student)}),
        "class_names": teacher.class_names,
        "classes": list_classes(config.classes, len(teacher.class_names)),
        **identifying_settings(config, recorded=_RECORDED, excluded=_EXCLUDED),
        **_ranking_identity(config.inversion, networks.teacher.model),
        "torch_threads": config.pool.cpus_per_actor,
    }


def _ranking_identity(inversion: InversionConfig, model: nn.Module) -> dict[str, str]:
    """Return the ranking of patches, unless it is by the CLS token, as it always was in earlier versions."""
    if inversion.mask_only or refusal(model) is not None:
        return {}
    ranking = resolve_ranking(model, inversion.ranking)
    return {} if ranking == "cls_attention" else {"ranking": ranking}


def _model_identity(loaded: LoadedModel) -> dict[str, Any]:
    # Not the name or the path: the same weights from elsewhere make the same images.
    return {
        "weights": loaded.digest,
        "architecture": getattr(loaded.model, "pretrained_cfg", {}).get("architecture"),
        "model_args": _plain_arguments(loaded.model),
        "input_size": list(loaded.input_size),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
    }


def _plain_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that a timm model was made with, from config or folder; classes and functions by name."""
    arguments = timm.models.get_model_args(model)
    return json.loads(json.dumps(arguments, default=lambda value: getattr(value, "__qualname__", type(value).__name__)))


def config_digest(config: SynthesisConfig, networks: Networks) -> str:
    """Return the SHA-256, in hex, of everything that decides the dataset."""
    return digest(identity(config, networks))


def image_seed(config_digest: str, shard_id: int, image_id: str) -> int:
    """Return the seed of one image, 63 bits."""
    return hash_number(f"{config_digest}/{shard_id}/{image_id}", 8) >> 1
