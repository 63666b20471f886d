"""Checks of a loaded teacher."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipeline.distillation import DistillationConfig, StudentConfig
from pipeline.distillation.plan import plan_distillation
from pipeline.errors import ModelError
from pipeline.evaluation import EvaluationConfig, evaluate
from pipeline.models import LoadedModel, ModelConfig, load_model, save_model
from pipeline.quantization import CalibrationConfig, calibrate
from pipeline.synthesis import SynthesisConfig
from pipeline.synthesis.plan import plan_synthesis
from pipeline.vetting import check_teacher
from tests.conftest import make_tiny_model

# Of every limit: a model beyond it, and what is said.
BEYOND: dict[str, tuple[dict[str, Any], str]] = {
    "one logit": ({"num_classes": 1}, "one logit: a softmax over one class is always 1"),
    "no classifier": ({"num_classes": 0}, r"no classifier, it outputs features \(num_classes is 0\)"),
    "tokens": ({"global_pool": ""}, r"outputs \[B, 17, 10\] \(a token sequence\), which are not logits"),
    "four channels": ({"in_chans": 4}, r"reads images of 4 channels: datasets hold gray \(1\) or RGB \(3\) pictures"),
    "two channels": ({"in_chans": 2}, "reads images of 2 channels"),
    "too many patches": ({"img_size": 1456}, "has 33124 patches, a dataset can number 32768"),
}


def save_teacher(folder: Path, **changes: Any) -> str:
    model = make_tiny_model(**changes)
    half = (0.5,) * changes.get("in_chans", 3)
    names = [f"class {label}" for label in range(changes.get("num_classes", 10))]
    save_model(model, folder, class_names=names, mean=half, std=half)
    return f"local-dir:{folder}"


@pytest.mark.parametrize("limit", BEYOND)
def test_a_model_beyond_a_limit_is_refused_before_anything_is_planned(tmp_path: Path, limit: str) -> None:
    changes, message = BEYOND[limit]
    teacher = ModelConfig(name=save_teacher(tmp_path / "teacher", **changes))
    with pytest.raises(ModelError, match=f"^model 'local-dir:.*{message}"):
        plan_synthesis(SynthesisConfig(teacher=teacher, output=str(tmp_path / "out"), images_per_class=1))
    assert not (tmp_path / "out").exists()


def test_the_limit_is_of_the_loaded_model_and_not_of_the_setting(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher")
    loaded = load_model(
        ModelConfig(name=folder, model_args={"in_chans": 4}, mean=[0.5] * 4, std=[0.5] * 4), trained=False
    )
    with pytest.raises(ModelError, match="reads images of 4 channels"):
        check_teacher(loaded)


@pytest.mark.parametrize("changes", [{}, {"mean": [0.5] * 3, "std": [0.5] * 3}])
def test_channels_are_refused_before_their_normalization_is(tmp_path: Path, changes: dict[str, Any]) -> None:
    teacher = ModelConfig(name="test_vit", num_classes=3, model_args={"in_chans": 4}, **changes)
    with pytest.raises(
        ModelError, match=r"^model 'test_vit' reads images of 4 channels: datasets hold gray \(1\) or RGB"
    ):
        load_model(teacher, trained=False)


@pytest.mark.parametrize("limit", ["one logit", "no classifier", "tokens", "four channels"])
def test_no_job_takes_such_a_model(tmp_path: Path, limit: str) -> None:
    changes, message = BEYOND[limit]
    teacher = ModelConfig(name=save_teacher(tmp_path / "teacher", **changes))
    # Nothing is read from here: the teacher is looked at first.
    images, output = str(tmp_path / "images"), str(tmp_path / "out")
    with pytest.raises(ModelError, match=message):
        evaluate(EvaluationConfig(teacher=teacher, labeled=images))
    with pytest.raises(ModelError, match=message):
        calibrate(CalibrationConfig(teacher=teacher, images=images, labeled=images, output=output))
    student = StudentConfig(depth_pruned=[0])
    with pytest.raises(ModelError, match=message):
        plan_distillation(DistillationConfig(teacher=teacher, student=student, images=images, output=output))


@pytest.fixture
def one_logit(tmp_path: Path) -> LoadedModel:
    return load_model(ModelConfig(name=save_teacher(tmp_path / "teacher", num_classes=1)))


def test_ranges_without_scores_need_no_classes(one_logit: LoadedModel) -> None:
    check_teacher(one_logit, classes=False)
    with pytest.raises(ModelError, match="one logit"):
        check_teacher(one_logit)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("multi_label_classification", "outputs several labels per image"),
        ("regression", r"outputs values \(regression\), not one of 10 classes"),
        ("ordinal", r"outputs something other than classes \(problem_type 'ordinal'\)"),
        ("single_label_classification", None),
        (None, None),
    ],
)
def test_a_head_of_another_kind_is_refused_where_the_folder_says_so(
    tmp_path: Path, tiny_folder: Path, problem: str | None, message: str | None
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": problem}))
    loaded = load_model(ModelConfig(name=f"local-dir:{folder}"))
    if message is None:
        check_teacher(loaded)
        return
    with pytest.raises(ModelError, match=message):
        check_teacher(loaded)


def test_a_resampled_teacher_is_announced(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ModelConfig(name=f"local-dir:{tiny_folder}", model_args={"img_size": 48})
    plan_synthesis(SynthesisConfig(teacher=teacher, output=str(tmp_path / "out"), images_per_class=1))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "was trained on 32x32 pixels, the model reads 48x48 pixels" in line


def test_an_image_tower_is_no_classifier(tmp_path: Path) -> None:
    """CLIP's tower in timm outputs an embedding of 512 numbers, which would be inverted as classes."""
    name = "vit_base_patch32_clip_224.openai"
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.save(timm.create_model(name, **sizes).state_dict(), tmp_path / "weights.pth")
    config = ModelConfig(name=name, checkpoint=str(tmp_path / "weights.pth"), model_args=sizes)
    with pytest.raises(ModelError, match="has 512 outputs that are no classes: those of an image tower"):
        check_teacher(load_model(config))
    check_teacher(load_model(config), classes=False)
    named = dataclasses.replace(config, class_names=tuple(f"class {number}" for number in range(512)))
    check_teacher(load_model(named))
