import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import yaml

from jobs.distill import main
from pipeline.dataset.schema import encode_image
from pipeline.models import ModelConfig, load_model, weight_digest
from tests.distillation.conftest import write_ragged
from tests.jobs.conftest import start_job

TIMEOUT_S = 120


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    write_ragged(tmp_path / "images.parquet", 21)
    return {
        "teacher": {"name": f"local-dir:{tiny_folder}"},
        "student": {"depth_pruned": [0]},
        "images": str(tmp_path / "images.parquet"),
        "labeled": str(tmp_path / "images.parquet"),
        "output": str(tmp_path / "out"),
        "epochs": 40,
        "batch_size": 8,
        "workers": {"device": "cpu"},
    }


def write_config(config: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "distill.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def write_beyond(path: Path) -> None:
    """Images one of which has a label that the teacher has no class for."""
    code = encode_image(np.zeros((32, 32, 3), np.uint8))
    pq.write_table(pa.table({"image": [code, code], "label": [0, 10]}), path)


def kill_after_epoch(job: subprocess.Popen[str], output: Path, epoch: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not any(int(path.stem[-5:]) >= epoch for path in (output / "checkpoints").glob("epoch-*.pt")):
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate()


@pytest.mark.usefixtures("ray_session")
def test_a_killed_job_submitted_again_goes_on_and_ends_as_one_that_was_not(
    config: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", write_config(config, tmp_path), "--workers.size", "1"]
    kill_after_epoch(start_job("distill", *flags), tmp_path / "out", 3)
    assert not (tmp_path / "out" / "result.json").exists()

    assert main(flags) == 0
    captured = capfd.readouterr()
    # The session's cluster may have reported something before the job began.
    result = json.loads(captured.out.splitlines()[-1])
    assert 3 <= result["continued_from_epoch"] < 40
    assert f"there is a checkpoint of epoch {result['continued_from_epoch']} of 40" in captured.err
    *_, header, _, teacher, before, best, last, command = captured.err.splitlines()
    assert header.split() == ["model", "epoch", "top-1", "%", "folder"]
    assert teacher.split() == ["teacher", "–", f"{result['teacher_top1']:.2f}", "–"]
    assert before.split()[-3:] == ["0", f"{result['before_top1']:.2f}", "–"]
    scored = {"best": ("best_epoch", "best_top1"), "last": ("epochs", "top1")}
    for name, row in (("best", best), ("last", last)):
        epoch, top1 = (result[key] for key in scored[name])
        assert row.split()[-3:] == [str(epoch), f"{top1:.2f}", str(tmp_path / "out" / "student" / name)]
    _, _, python = command.partition("load it in Python: import timm; ")
    assert weight_digest(eval(python, {"timm": timm}).eval()) == saved_digests(result)[0]  # noqa: S307

    assert main([*flags, "--workers.size", "0", "--output", str(tmp_path / "untouched")]) == 0
    untouched = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert untouched["weights_sha256"] == result["weights_sha256"]
    assert untouched["best_epoch"] == result["best_epoch"]
    assert saved_digests(untouched) == saved_digests(result)


def saved_digests(result: dict[str, Any]) -> list[str]:
    students = [load_model(ModelConfig(name=f"local-dir:{result[name]}")) for name in ("student", "last")]
    return [weight_digest(student.model) for student in students]


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"temprature": 4}, [], "temprature"),
        ({"epochs": "many"}, [], "epochs"),
        ({}, ["--epochs", "0"], "ConfigError: epochs must be positive, not 0"),
        ({"student": {}}, [], "ConfigError: student: give model or depth_pruned, one of the two; got neither"),
        ({"student": {"depth_pruned": [5]}}, [], "ConfigError: student.depth_pruned: no block 5, the teacher has 2"),
        (
            {"student": {"model": {"name": "resnet10t", "num_classes": 3}}},
            [],
            "ConfigError: student.model.num_classes is 3, the teacher has 10 classes",
        ),
        ({"student": {"model": {"name": "resnet99"}}}, [], "ModelError: timm"),
        ({}, ["--images", "/nowhere"], "DatasetError: no dataset at '/nowhere'"),
        ({"labeled": "{tmp}/beyond.parquet"}, [], "beyond.parquet' has label 10, there are 10 classes"),
        (
            {"images": "{tmp}/beyond.parquet"},
            ["--label_weight", "1"],
            "beyond.parquet' has label 10, there are 10 classes",
        ),
        ({}, ["--output", "/proc/nowhere"], "DatasetError: cannot write to '/proc/nowhere'"),
        ({}, ["--teacher.checkpoint", "/nowhere.pth"], "CheckpointError"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    config: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    flags: list[str],
    message: str,
) -> None:
    write_beyond(tmp_path / "beyond.parquet")
    filled = {
        key: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    assert main(["--config", write_config({**config, **filled}, tmp_path), *flags]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_print_config_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--student.depth_pruned", "[0]", "--teacher.name", "x", "--images", "i", "--output", "o"]
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--print_config"])
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["student"]["depth_pruned"] == [0]
    assert shown["temperature"] == 4.0
