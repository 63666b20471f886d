"""Warnings about the images of a distillation before it starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dataset.collection import ImageCollection
from pipeline.dataset.discovery import find_source
from pipeline.distillation import DistillationConfig, StudentConfig
from pipeline.distillation.plan import _warn_of_other_teachers, plan_distillation
from pipeline.models import LoadedModel, ModelConfig
from pipeline.workers import WorkersConfig
from tests.distillation.conftest import write_ragged


def config(teacher: Path, images: Path, *, batch_size: int) -> DistillationConfig:
    return DistillationConfig(
        teacher=ModelConfig(name=f"local-dir:{teacher}"),
        student=StudentConfig(depth_pruned=[0]),
        images=str(images),
        output=str(images.parent / "out"),
        batch_size=batch_size,
        workers=WorkersConfig(size=0),
    )


def test_a_line_says_that_images_are_less_than_a_batch(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ragged(tmp_path / "images.parquet", 3)
    plan_distillation(config(tiny_folder, tmp_path / "images.parquet", batch_size=4))
    assert (
        "warning: distill: 3 images are less than one batch of 4, so each epoch is a single step: a student learns "
        "little from so few\n"
    ) in capsys.readouterr().err
    plan_distillation(config(tiny_folder, tmp_path / "images.parquet", batch_size=3))
    assert "less than one batch" not in capsys.readouterr().err


def test_a_line_says_that_images_are_of_another_teacher(
    teacher: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ragged(tmp_path / "images.parquet", 3)
    source = find_source(str(tmp_path / "images.parquet"))
    for digest in ("d" * 64, teacher.digest):
        made = replace(source, manifest={"teacher": {"name": "other", "weights_sha256": digest}})
        _warn_of_other_teachers(ImageCollection.of(made), teacher)
    _warn_of_other_teachers(ImageCollection.of(source), teacher)
    assert capsys.readouterr().err == (
        f"warning: distill: {source.uri!r} holds images of the teacher 'other' with weights dddddddd, not of "
        f"{teacher.name!r} with weights {teacher.digest[:8]}: the teacher answers them all the same\n"
    )


def test_a_line_says_that_a_student_with_batch_norm_depends_on_the_number_of_workers(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ragged(tmp_path / "images.parquet", 13)
    alone = config(tiny_folder, tmp_path / "images.parquet", batch_size=9)
    resnet = StudentConfig(model=ModelConfig(name="test_resnet"))
    for student, size in ((resnet, 0), (resnet, 1), (alone.student, 2)):
        plan_distillation(replace(alone, student=student, workers=WorkersConfig(size=size)))
    assert "BatchNorm" not in capsys.readouterr().err
    plan_distillation(replace(alone, student=resnet, workers=WorkersConfig(size=2)))
    assert (
        "note: the student, a ResNet, has BatchNorm: each of 2 workers normalizes over its own share of a batch, 4 "
        "images or more, so other numbers of workers train other students\n"
    ) in capsys.readouterr().err
