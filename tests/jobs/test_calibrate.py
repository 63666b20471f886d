"""The job `calibrate`: one JSON line, and one line for whatever a user got wrong, with nothing left behind."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs import calibrate, evaluate
from pipeline.config import from_dict, parse_config
from pipeline.dataset import write_images
from pipeline.dataset.schema import encode_image
from pipeline.quantization import CalibrationConfig


@pytest.fixture
def images(tmp_path: Path) -> Path:
    uri = tmp_path / "images.parquet"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    write_images(str(uri), pixels, [0, 1, 2, 3, 4], [f"class {letter}" for letter in "abcdefghij"])
    return uri


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Path, images: Path) -> Path:
    values = {
        "teacher": {"name": f"local-dir:{tiny_folder}"},
        "images": str(images),
        "output": str(tmp_path / "out"),
        "settings": [{"weights": 4, "activations": 8}],
        "formats": ["pt2"],
        "workers": {"size": 0},
    }
    file = tmp_path / "calibrate.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.usefixtures("ray_session")
def test_the_job_prints_one_json_line_below_a_table_and_a_command_that_works(
    config: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main(["--config", str(config), "--labeled", str(images)]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    (row,) = json.loads(line)["artifacts"]
    assert (row["weights"], row["activations"], row["artifact"], row["images"]) == (4, 8, "pt2", 5)
    *_, times, header, _, fp32, w4a8, command = printed.err.splitlines()
    assert times.startswith("calibrate: times are ms per image, median, ")
    assert header.split("  ")[:3] == ["model", "format", "top-1 %"]
    assert fp32.split()[:2] == ["fp32", "torch"]
    assert w4a8.split()[:4] == ["W4A8", "pt2", f"{row['top1']:.2f}", f"{row['agreement']:.2f}"]
    _, _, flags = command.partition(": python -m jobs.evaluate ")
    assert evaluate.main(shlex.split(flags)) == 0
    (scored,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert (scored["artifact"], scored["top1"]) == (str(tmp_path / "out" / "w4a8.pt2"), row["top1"])
    assert (tmp_path / "out-scores" / "report.html").exists()
    # Without labeled images, these are to be given.
    (*_, command) = calibrate._ending(parse_config(CalibrationConfig, ["--config", str(config)]), json.loads(line))
    _, _, flags = command.partition("labeled images for LABELED: python -m jobs.evaluate ")
    assert evaluate.main([str(images) if flag == "LABELED" else flag for flag in shlex.split(flags)]) == 0
    assert json.loads(capsys.readouterr().out)["artifacts"] == [scored]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--settings", "[{weights: 0}]"], "ConfigError", "weights must have 2 to 16 bits, not 0"),
        (["--settings", "[{activations: 17}]"], "ConfigError", "activations must have 2 to 16 bits, not 17"),
        (["--seed", "-1"], "ConfigError", "seed must not be negative"),
        (["--workers.start_timeout_s", "0"], "ConfigError", "workers.start_timeout_s must be at least 1, not 0"),
        (["--placement", "everywhere"], "ConfigError", "everywhere"),
        (["--mode", "thick"], "ConfigError", "thick"),
        (["--formats", "[tflite]"], "ConfigError", "tflite"),
        (["--batchsize", "3"], "ConfigError", "batchsize"),
        (["--images", "{tmp}/nowhere"], "DatasetError", "nowhere"),
        (["--images", "{tmp}/bad.parquet"], "DamagedError", "bad.parquet"),
        (["--labeled", "{tmp}/unlabeled"], "DatasetError", "has no labels"),
        (["--labeled", "{tmp}/nowhere"], "DatasetError", "nowhere"),
        (["--labeled", "{tmp}/beyond.parquet"], "DatasetError", "beyond.parquet' has label 10, there are 10 classes"),
        (["--labeled", "{tmp}/negative.parquet"], "DatasetError", "has label -1, there are 10 classes"),
        (["--labeled", "{tmp}/noise.parquet"], "DatasetError", "of '{tmp}/noise.parquet' cannot be decoded"),
        (["--images", "{tmp}/noise.parquet"], "DatasetError", "of '{tmp}/noise.parquet' cannot be decoded"),
        (["--output", "{tmp}/file/out"], "DatasetError", "cannot write to"),
        (["--output", "gopher://out"], "DatasetError", "gopher"),
        (["--teacher.name", "no_such_model"], "ModelError", "no_such_model"),
        (["--teacher.checkpoint", "{tmp}/none.safetensors"], "CheckpointError", "none.safetensors"),
    ],
)
def test_what_a_user_gets_wrong_is_reported_in_one_line(
    flags: list[str],
    error: str,
    message: str,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "unlabeled").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "unlabeled" / "a.png")
    code = encode_image(np.zeros((32, 32, 3), np.uint8))
    for name, first, label in (("beyond", code, 10), ("negative", code, -1), ("noise", b"noise", 3)):
        pq.write_table(pa.table({"image": [first, code], "label": [0, label]}), tmp_path / f"{name}.parquet")
    before = sorted(tmp_path.rglob("*"))
    filled = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    assert calibrate.main(["--config", str(config), *filled]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    # The cluster of the tests may have reported something meanwhile.
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {error}: ")
    assert message.replace("{tmp}", str(tmp_path)) in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("ray_session")
def test_more_workers_than_this_machine_holds_are_not_waited_for(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main(["--config", str(config), "--workers.size", "500"]) == 1
    needed = "workers.size 500 needs 500 CPUs, 1 for each, and the cluster has 4"
    assert f"error: ConfigError: {needed}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_truncated_image_is_reported_in_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
    content = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(content[: len(content) // 2])
    assert calibrate.main(["--config", str(config), "--images", str(folder)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: DatasetError: image 'b.png' of '{folder}' cannot be decoded")
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_who_stops_a_calibration_is_told_whether_it_goes_on(tmp_path: Path) -> None:
    values = {"teacher": {"name": "x"}, "images": "x", "output": str(tmp_path)}
    plain, trained = (from_dict(CalibrationConfig, {**values, **more}) for more in ({}, {"qat": {}}))
    assert calibrate._left(trained) == "run it again: a calibration starts anew"
    folder = tmp_path / ".qat-checkpoints" / "w4a4-01234567" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "epoch-00001.pt").write_text("")
    goes_on = "run it again: it calibrates anew, and its training goes on from the last checkpoint"
    assert calibrate._left(trained) == goes_on
    assert calibrate._left(plain) == "run it again: a calibration starts anew"


def test_the_config_is_printed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        calibrate.main(["--config", str(config), "--batch_size", "7", "--print_config"])
    assert caught.value.code == 0
    printed: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert printed["batch_size"] == 7
    assert printed["settings"] == [{"weights": 4, "activations": 8}]
