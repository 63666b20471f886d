"""What is said of the images of a distillation before it starts."""

from pathlib import Path

import pytest

from pipeline.distillation import DistillationConfig, StudentConfig
from pipeline.distillation.plan import plan_distillation
from pipeline.models import ModelConfig
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
