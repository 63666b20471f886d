"""The job `evaluate`: one JSON line with a row for each artifact."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate
from pipeline.dataset import write_images
from pipeline.dataset.schema import encode_image


@pytest.fixture
def labeled(tmp_path: Path) -> str:
    uri = str(tmp_path / "labeled.parquet")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    write_images(uri, pixels, [0, 1, 2, 3, 4, 5], [f"class {letter}" for letter in "abcdefghij"])
    return uri


@pytest.mark.usefixtures("ray_session")
def test_the_job_prints_one_json_line(
    labeled: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--teacher.name", f"local-dir:{tiny_folder}", "--labeled", labeled, "--output", str(tmp_path / "out")]
    assert evaluate.main([*flags, "--artifacts", str(tiny_folder)]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    assert "evaluate: 6 of 6 images, " in printed.err
    header = ["artifact", "top-1", "%", "top-5", "%", "images"]
    assert printed.err.splitlines()[-3].split() == header
    assert printed.err.splitlines()[-1].startswith(str(tiny_folder))
    (row,) = json.loads(line)["artifacts"]
    assert (row["artifact"], row["images"]) == (str(tiny_folder), 6)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(line)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"not a program", "x.pt2", "as a .pt2 program"),
        (b"not a model", "x.onnx", "as an ONNX model"),
        (b"\x80\x04.", "x.pickle", "is no artifact"),
        (None, "none.pt2", "cannot read"),
    ],
)
def test_unreadable_artifacts_are_reported_in_one_line(
    content: bytes | None,
    name: str,
    message: str,
    labeled: str,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    flags = ["--teacher.name", f"local-dir:{tiny_folder}", "--labeled", labeled, "--output", str(tmp_path / "out")]
    assert evaluate.main([*flags, "--artifacts", json.dumps([str(tmp_path / name)])]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert name in line
    assert message in line
    assert not (tmp_path / "out").exists()


def test_labels_beyond_the_classes_are_reported_before_a_cluster_is_joined(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "beyond.parquet"
    code = encode_image(np.zeros((32, 32, 3), np.uint8))
    pq.write_table(pa.table({"image": [code, code], "label": [0, 99]}), file)
    flags = ["--teacher.name", f"local-dir:{tiny_folder}", "--labeled", str(file), "--output", str(tmp_path / "out")]
    assert evaluate.main(flags) == 1
    assert capsys.readouterr().err.endswith(f"error: DatasetError: '{file}' has label 99, there are 10 classes\n")
    assert not (tmp_path / "out").exists()
