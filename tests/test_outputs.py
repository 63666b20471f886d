"""No job writes into another's output."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import from_dict
from pipeline.dataset import store, write_images
from pipeline.distillation import DistillationConfig, StudentConfig, distill
from pipeline.errors import ConfigError, DatasetError
from pipeline.models import ModelConfig
from pipeline.outputs import JobName, check_output, job_of
from pipeline.quantization import CalibrationConfig, calibrate
from pipeline.synthesis import SynthesisConfig, synthesize
from pipeline.workers import WorkersConfig
from tests.conftest import make_manifest

CONFIGS: dict[str, dict[str, Any]] = {
    "calibrate": {"job": "calibrate"},
    "distill": {"job": "distill"},
    "calibrate before it said so": {"digest": "d", "placement": "linear", "mode": "sparse", "teacher": "t"},
    "distill before it said so": {"digest": "d", "student": "s", "dataset": None, "teacher": "t"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_output_is_known_by_its_config(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    assert job_of(str(tmp_path)) == name.split()[0]


@pytest.mark.parametrize("content", ["{}", "[]", json.dumps({"architecture": "vit", "num_classes": 3})])
def test_a_config_of_something_else_is_not_written_over(tmp_path: Path, content: str) -> None:
    assert job_of(str(tmp_path)) is None
    (tmp_path / "config.json").write_text(content)
    assert job_of(str(tmp_path)) is None
    with pytest.raises(DatasetError, match=r"holds a config\.json that is not of a distillation"):
        check_output(str(tmp_path), "distill")
    check_output(str(tmp_path), "synthesize")


@pytest.fixture
def images(tmp_path: Path) -> str:
    uri = str(tmp_path / "images.parquet")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    write_images(uri, pixels, [0, 1, 2], [f"class {letter}" for letter in "abcdefghij"])
    return uri


def run(job: JobName, teacher: Path, images: str, output: str, *, workers: int = 0) -> object:
    model = ModelConfig(name=f"local-dir:{teacher}")
    if job == "synthesize":
        values = {"teacher": {"name": model.name}, "output": output, "images_per_class": 1}
        return synthesize(from_dict(SynthesisConfig, values))
    common: dict[str, Any] = {"teacher": model, "images": images, "output": output}
    common["workers"] = WorkersConfig(size=workers)
    if job == "calibrate":
        return calibrate(CalibrationConfig(**common))
    return distill(DistillationConfig(**common, student=StudentConfig(depth_pruned=[0])))


@pytest.mark.parametrize(
    ("job", "owner", "message"),
    [
        ("synthesize", "calibrate", "holds a calibration: synthesize needs a folder of its own"),
        ("synthesize", "distill", "holds a distillation: synthesize needs a folder of its own"),
        ("calibrate", "synthesize", "holds a synthetic dataset: calibrate needs a folder of its own"),
        ("calibrate", "distill before it said so", "holds a distillation: calibrate needs a folder of its own"),
        ("distill", "synthesize", "holds a synthetic dataset: distill needs a folder of its own"),
        ("distill", "calibrate before it said so", "holds a calibration: distill needs a folder of its own"),
    ],
)
def test_another_jobs_output_is_refused_and_left_alone(
    job: JobName, owner: str, message: str, tiny_folder: Path, images: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    if owner == "synthesize":
        store.write_manifest(str(output), make_manifest("d" * 64))
    else:
        output.mkdir()
        (output / "config.json").write_text(json.dumps(CONFIGS[owner]))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(DatasetError, match=message):
        run(job, tiny_folder, images, str(output))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("job", ["synthesize", "calibrate", "distill"])
def test_workers_need_an_output_that_they_can_reach(job: JobName, tiny_folder: Path, images: str) -> None:
    with pytest.raises(ConfigError, match="'memory://out' is in the memory of this process"):
        run(job, tiny_folder, images, "memory://out", workers=1)
