"""No job writes into another's output."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import from_dict
from pipeline.dataset import store, write_images
from pipeline.dataset.discovery import find_source
from pipeline.distillation import DistillationConfig, StudentConfig, distill
from pipeline.errors import ConfigError, DatasetError
from pipeline.evaluation import EvaluationConfig, evaluate
from pipeline.models import ModelConfig
from pipeline.outputs.owners import JobName, check_apart, check_output, check_place, job_of
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


@pytest.mark.parametrize("job", ["calibrate", "distill"])
def test_a_folder_of_other_things_is_refused(job: JobName, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of a demo")
    (tmp_path / "sparse").mkdir()
    with pytest.raises(DatasetError, match=f"holds report.html, sparse/, and no config.json of .*: {job} needs a fold"):
        check_output(str(tmp_path), job)


@pytest.mark.parametrize("job", ["calibrate", "distill"])
def test_a_folder_of_notes_and_of_a_job_that_was_stopped_is_taken(job: JobName, tmp_path: Path) -> None:
    for name in ("README.md", "job.LOG", "settings.yaml", ".at-work.json", ".qat-checkpoints/w4a4.pt", "lost+found/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    check_output(str(tmp_path), job)


@pytest.fixture
def images(tmp_path: Path) -> str:
    uri = str(tmp_path / "images.parquet")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    write_images(uri, pixels, [0, 1, 2], [f"class {letter}" for letter in "abcdefghij"])
    return uri


def run(job: str, teacher: Path, images: str, output: str, *, workers: int = 0) -> object:
    model = ModelConfig(name=f"local-dir:{teacher}")
    if job == "evaluate":
        return evaluate(EvaluationConfig(teacher=model, labeled=images, output=output))
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


@pytest.mark.parametrize("output", ["{}", "{}/", "{}/out", "{}/../images/class a", "file://{}/out"])
@pytest.mark.parametrize("job", ["calibrate", "distill", "evaluate"])
def test_an_output_among_images_is_refused_before_anything_is_written(
    job: str, output: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """A distillation's curve was read as an image by the next run."""
    folder = tmp_path / "images"
    (folder / "class a").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "class a" / "0.png")
    message = "is inside the images '.*', where its files would be read as images: give it a folder of its own"
    with pytest.raises(ConfigError, match=message):
        run(job, tiny_folder, str(folder), output.format(folder))
    assert [path.name for path in folder.rglob("*")] == ["class a", "0.png"]


def test_an_output_beside_images_or_the_parts_of_a_dataset_is_taken(images: str, tmp_path: Path) -> None:
    source = find_source(images)
    check_apart(str(tmp_path / "out"), [source])
    made = replace(source, uri=str(tmp_path / "made"), manifest={})
    for name in ("made/report", "made-too", "data", ""):
        check_apart(str(tmp_path / name), [made])
    for name in ("made/data", "made/data/out"):
        with pytest.raises(ConfigError, match=r"is inside the images '.*/made/data'"):
            check_apart(str(tmp_path / name), [made])
    with pytest.raises(ConfigError, match="is the folder of the images: give it a folder of its own"):
        check_apart(str(tmp_path / "made"), [made])


@pytest.mark.parametrize("job", ["calibrate", "distill", "synthesize", "evaluate"])
def test_an_empty_output_is_not_the_working_folder(job: str, tiny_folder: Path, images: str) -> None:
    with pytest.raises(ConfigError, match="output must name a folder, it is empty"):
        run(job, tiny_folder, images, "")


def test_an_output_named_by_a_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a YAML file nothing replaces it, and a folder `$RUNS` was made."""
    monkeypatch.setenv("RUNS", "/data/secret")
    for output in ("$RUNS/a", "s3://bucket/${RUNS}/a"):
        with pytest.raises(ConfigError, match=r"only a shell replaces \$RUNS by its value, so write") as caught:
            check_place(output, shared=True)
        assert "secret" not in str(caught.value)
    check_place("a$b/$NO_SUCH_VARIABLE", shared=True)


@pytest.mark.parametrize("owner", ["calibrate", "distill"])
def test_an_evaluation_leaves_the_report_of_another_job(owner: str, images: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(json.dumps(CONFIGS[owner]))
    config = EvaluationConfig(teacher=ModelConfig(name="nowhere"), labeled=images, output=str(tmp_path / "out"))
    with pytest.raises(DatasetError, match=f"holds a {owner[:7]}.*: evaluate needs a folder of its own"):
        evaluate(config)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
