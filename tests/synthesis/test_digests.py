"""Digests of datasets, as recorded: a dataset that somebody has made must be found again by every later version."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import digest, from_dict
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.synthesis import SynthesisConfig
from pipeline.synthesis.identity import identity
from pipeline.synthesis.networks import Networks

SPARSE = {"iterations": 24, "stop_steps": [4, 8, 12], "stop_fractions": [0.3, 0.3, 0.3]}
RECORDED: dict[str, tuple[dict[str, Any], str]] = {
    "sparse": ({"inversion": SPARSE}, "5f344c090a2f872e03499f3751758fe5bd24915b6e173683b509769eb53ca319"),
    "dense": (
        {"inversion": {"iterations": 24, "stop_steps": [], "stop_fractions": []}},
        "186c0b3989ad96d9b069683940e3170b2447045e00d8dc511c919cf972406784",
    ),
    "rebirth": (
        {"inversion": {"iterations": 24, "stop_steps": [], "stop_fractions": [], "rebirth": 2}},
        "9e4ebfab5007c3896f8bd8783b8fc8130e55f0a39603d10c543cc5ea1692d308",
    ),
    "adaptive end": (
        {"inversion": {**SPARSE, "adaptive_end": {"confidence": 0.5, "hold_steps": 2}}},
        "2d6d22f5dd1890f81f1a2805492454166a0c952e19636f423adc648baddd9402",
    ),
    "adversarial": (
        {"inversion": {**SPARSE, "adversarial": 1.0}, "student": True},
        "ad1fa01f7396cc039e5e4846d51dd8bf8247d4a3b1737894cbdcb9ab001ea3ff",
    ),
    "some classes, other counts": (
        {"inversion": SPARSE, "classes": [7, 0, 3], "seed": 5, "shard_size": 2},
        "f5a0ee737a6baeb51c503cba4e6d46a2b79bad0db420209749bf56bd6bfb705f",
    ),
}


def with_weights(folder: Path, number: int) -> LoadedModel:
    """The tiny model under a digest of its own: processors may round its random weights differently."""
    return replace(load_model(ModelConfig(name=f"local-dir:{folder}")), digest=f"{number:064x}")


@pytest.mark.parametrize("name", RECORDED)
def test_a_dataset_keeps_its_digest(tiny_folder: Path, name: str) -> None:
    changes, recorded = RECORDED[name]
    teacher = {"name": f"local-dir:{tiny_folder}"}
    values = {"teacher": teacher, "output": "anywhere", "images_per_class": 4, "shard_size": 4, **changes}
    has_student = values.pop("student", False)
    config = from_dict(SynthesisConfig, values | ({"student": teacher} if has_student else {}))
    networks = Networks(with_weights(tiny_folder, 1), student=with_weights(tiny_folder, 2) if has_student else None)
    assert digest(identity(config, networks)) == recorded
