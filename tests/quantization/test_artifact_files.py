"""Files are compared with what was calibrated: a wrong one is refused by name, and the others are kept."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from jobs import calibrate
from pipeline.artifacts import onnx
from pipeline.artifacts.onnx import save_onnx
from pipeline.dataset import write_images
from pipeline.errors import ModelError
from pipeline.quantization.agreement import largest_deviation, relative_error

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> list[str]:
    uri = str(tmp_path / "images.parquet")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    write_images(uri, pixels, [0, 1, 2, 3, 4], [f"class {letter}" for letter in "abcdefghij"])
    teacher = ["--teacher.name", f"local-dir:{tiny_folder}"]
    return [*teacher, "--images", uri, "--output", str(tmp_path / "out"), "--workers.size", "0"]


def test_independent_roundings_of_equal_size_are_within_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    exact, first, second = torch.randn(3, 100, 10, generator=generator)
    assert relative_error(exact + 0.01 * first, exact + 0.01 * second) < largest_deviation(exact + 0.01 * first, exact)
    assert relative_error(exact + 0.03 * second, exact) > largest_deviation(exact + 0.01 * first, exact)


def test_a_file_that_computes_something_else_is_not_written(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_spoiled(program: ExportedProgram, *arguments: Any, **how: Any) -> list[Path]:
        bias = program.state_dict["model.head.bias"].detach()
        kept = bias.clone()
        bias.add_(torch.arange(10))
        try:
            return save_onnx(program, *arguments, **how)
        finally:
            bias.copy_(kept)

    out = tmp_path / "out"
    assert calibrate.main(flags) == 0
    assert (out / "w8a8.onnx").exists()
    capsys.readouterr()
    monkeypatch.setattr(onnx, "FORMAT", replace(onnx.FORMAT, save=save_spoiled))
    assert calibrate.main(flags) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["complete"] is False
    (refused,) = report["failed"]
    assert refused["artifact"] == "w8a8.onnx"
    assert refused["deviation"] > refused["bound"]
    assert "error: w8a8.onnx differs from the calibrated model: its logits have a relative error of" in printed.err
    assert [row["artifact"] for row in report["artifacts"]] == ["pt2"]
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "ranges.json",
        "report.html",
        "report.json",
        "w8a8.pt2",
    ]


def test_a_file_that_cannot_be_made_leaves_the_others(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_half(program: ExportedProgram, path: Path, *_: Any, **__: Any) -> list[Path]:
        path.write_bytes(b"half")
        Path(f"{path}.data").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx, "FORMAT", replace(onnx.FORMAT, save=save_half))
    assert calibrate.main(flags) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    reason = "could not be made: OSError: [Errno 28] No space left on device"
    assert report["complete"] is False
    assert report["failed"] == [{"artifact": "w8a8.onnx", "may_come": True, "reason": reason}]
    assert [row["artifact"] for row in report["artifacts"]] == ["pt2"]
    assert f"error: w8a8.onnx {reason}; it is not written" in printed.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "ranges.json", "report.html", "report.json", "w8a8.pt2"]


def test_a_file_of_an_earlier_run_is_left_where_it_cannot_be_made_again(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_nothing(*_: Any, **__: Any) -> list[Path]:
        raise MemoryError

    assert calibrate.main([*flags, "--formats", "[onnx]"]) == 0
    capsys.readouterr()
    made = (tmp_path / "out" / "w8a8.onnx").read_bytes()
    monkeypatch.setattr(onnx, "FORMAT", replace(onnx.FORMAT, save=save_nothing))
    assert calibrate.main([*flags, "--formats", "[onnx]"]) == 1
    printed = capsys.readouterr()
    reason = "could not be made: MemoryError: ; the file of an earlier run is left"
    assert json.loads(printed.out)["failed"] == [{"artifact": "w8a8.onnx", "may_come": True, "reason": reason}]
    assert f"warning: w8a8.onnx of an earlier run is left in '{tmp_path / 'out'}'" in printed.err
    assert (tmp_path / "out" / "w8a8.onnx").read_bytes() == made


def test_a_baseline_that_cannot_be_made_is_a_note(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_quantized(program: ExportedProgram, path: Path, *arguments: Any, **how: Any) -> list[Path]:
        if path.name == "fp32.onnx":
            raise ModelError("the model has no ONNX form: too large")
        return save_onnx(program, path, *arguments, **how)

    monkeypatch.setattr(onnx, "FORMAT", replace(onnx.FORMAT, save=save_quantized))
    assert calibrate.main(flags) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    note = "not measured: ModelError: the model has no ONNX form: too large"
    assert report["fp32"][1] == {"artifact": "onnx", "note": note}
    assert note in printed.err
    assert {"w8a8.onnx", "w8a8.pt2"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_int8_weights_are_kept_where_asked_for_and_their_limit_is_stated(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main([*flags, "--onnx_weights", "int8", "--formats", "[onnx]"]) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)["artifacts"]
    wrong_here = row["deviation"] > 0.05
    assert wrong_here == ("products saturate on this processor" in row.get("note", ""))
    assert wrong_here == ("warning: w8a8.onnx: int8 weights" in printed.err)
    assert (tmp_path / "out" / "w8a8.onnx").is_file()
