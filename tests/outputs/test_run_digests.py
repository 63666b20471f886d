"""Digests of calibrations and trainings, as recorded: a later version must find them again, or it would refuse them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import from_dict
from pipeline.dataset.collection import ImageCollection
from pipeline.dataset.source import Source
from pipeline.dataset.units import RowRange
from pipeline.distillation import DistillationConfig
from pipeline.distillation import plan as training
from pipeline.distillation.students import build_student
from pipeline.errors import DatasetError
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.outputs import check_same_settings
from pipeline.quantization import CalibrationConfig
from pipeline.quantization import plan as calibration

IMAGES = ImageCollection.of(Source("u", {}, None, False, [RowRange("u/x", "x", 0, 0, 0, 5, 100)]))
CALIBRATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "32b75b7b3d8371e7fa5f4468c2f07e23b4409d2efcfb700a44f48ac2e3291419"),
    "other settings": (
        {
            "mode": "dense",
            "max_images": 7,
            "seed": 3,
            "batch_size": 4,
            "images_split": "train",
            "num_workers": 3,
            "settings": [{"weights": 4}],
        },
        "9a34ba1e7302ddfcec30c3dbe3b150f377bed36458cdccae0fa7d94f715809d1",
    ),
    "other preprocessing": (
        {"teacher": {"crop_pct": 0.9, "interpolation": "bilinear"}},
        "0ac3ad980717c915e4ec875a14845d499b0b09d314eec91fd29097014c8ba167",
    ),
}
TRAININGS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({"student": {"depth_pruned": [1]}}, "89458fdf5bc49dccf331a2ac2ce47bc57f71b98e9fc69db79fa117aa27d6c851"),
    "other settings": (
        {
            "student": {"model": {"name": "local-dir:anywhere", "crop_pct": 0.5}},
            "lr": 0.1,
            "labelled": "x",
            "images_split": "a",
            "labelled_split": "b",
            "num_workers": 0,
            "cache_gb": 3.0,
        },
        "5fed0d3fcf13076a05e246ad661dcf058f9436e50133607d52ab76610c490ce4",
    ),
    "another teacher": (
        {
            "student": {"depth_pruned": [0]},
            "teacher": {
                "name": "vit_tiny_patch16_224",
                "checkpoint": "/x",
                "crop_mode": "squash",
                "mean": [0.1, 0.2, 0.3],
                "class_names": "/n.txt",
            },
            "warmup_epochs": 2.0,
        },
        "c11203c092f611b5bda94271e8545db6b33ac146f62e1f14fcaefa1fc74c5662",
    ),
}


@pytest.fixture
def loaded(tiny_folder: Path) -> LoadedModel:
    """The tiny model under a digest of its own: processors may round its random weights differently."""
    return replace(load_model(ModelConfig(name=f"local-dir:{tiny_folder}")), digest=f"{1:064x}")


def make(config_class: Any, changes: dict[str, Any]) -> Any:
    values = {"images": "a", "output": "o", **changes}
    return from_dict(config_class, {**values, "teacher": {"name": "local-dir:anywhere", **values.get("teacher", {})}})


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_a_calibration_keeps_its_digest(loaded: LoadedModel, name: str) -> None:
    changes, recorded = CALIBRATIONS[name]
    assert calibration._document(make(CalibrationConfig, changes), IMAGES, loaded)["digest"] == recorded


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_keeps_its_digest(loaded: LoadedModel, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, recorded = TRAININGS[name]
    # Recorded before there were views.
    config = make(DistillationConfig, {**changes, "augment": None})
    monkeypatch.setattr(training, "weight_digest", lambda model: f"{2:064x}")
    student = build_student(replace(config.student, model=None, depth_pruned=[1]), loaded, seed=0)
    labeled = IMAGES if config.labeled else None
    assert training._document(config, loaded, student, IMAGES, labeled)["digest"] == recorded


def test_views_belong_to_the_identity_of_a_training(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all their settings are the defaults: a training of before there were views is another one."""
    monkeypatch.setattr(training, "weight_digest", lambda model: f"{2:064x}")

    def document(**changes: Any) -> dict[str, Any]:
        config = make(DistillationConfig, {"student": {"depth_pruned": [1]}, **changes})
        student = build_student(config.student, loaded, seed=0)
        return training._document(config, loaded, student, IMAGES, None)

    without, default, other = document(augment=None), document(), document(augment={"blur": 2.0})
    assert without["digest"] == TRAININGS["plain"][1]
    assert default["digest"] == document(augment={})["digest"]
    assert len({run["digest"] for run in (without, default, other)}) == 3
    assert "augment" not in without["identity"]["config"]
    assert default["identity"]["config"]["augment"] == {"erase": 0.5}
    assert other["identity"]["config"]["augment"] == {"blur": 2.0, "erase": 0.5}
    # As of before erasing was known.
    assert document(augment={"erase": 0.0})["identity"]["config"]["augment"] == {}
    with pytest.raises(DatasetError, match=r"augment is None there, .'erase': 0\.5. here"):
        check_same_settings("out", "distill", without, default)
