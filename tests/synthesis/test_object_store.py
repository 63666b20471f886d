"""Output on an object store: a server that speaks S3, in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from s3fs import S3FileSystem

from jobs import status
from tests.synthesis.conftest import Made, start, write_config

SCRIPT = """
import json, sys
from pipeline.config import parse_config
from pipeline.dataset import read_images
from pipeline.distillation import DistillationConfig, distill
from pipeline.synthesis import SynthesisConfig, synthesize

config = parse_config(SynthesisConfig, ["--config", sys.argv[1]])
summary = synthesize(config)
rows = read_images(config.output).take_all()
flags = {"teacher.name": config.teacher.name, "student.depth_pruned": "[1]", "images": config.output}
flags |= {"output": "s3://made/student", "labeled": config.output, "epochs": "2", "token_weight": "1.0"}
flags["workers.device"] = "cpu"
student = distill(parse_config(DistillationConfig, [f"--{name}={value}" for name, value in flags.items()]))
print(json.dumps({**summary, "rows": len(rows), "shape": rows[0]["image"].shape, "student": student}))
"""


def check_student(store: S3FileSystem, result: dict[str, Any], folder: Path) -> None:
    """Everything of a distillation lies there, nothing of Ray Train's is left, and the student loads."""
    names = {path.removeprefix("made/student/").partition("/")[0] for path in store.find("made/student")}
    assert names == {
        "checkpoints",
        "config.json",
        "curve.png",
        "metrics.jsonl",
        "report.html",
        "result.json",
        "student",
    }
    assert result["images"] == 30
    store.get(result["student"], str(folder), recursive=True)
    student = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert sum(name.startswith("blocks.1") for name, _ in student.named_modules()) == 0


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_session")
def test_output_on_an_object_store(
    made: Made, tiny_folder: Path, tmp_path: Path, s3: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(tmp_path, tiny_folder, "s3://made/here", pool={"device": "cpu"})
    process = start(["-c", SCRIPT, str(file)], s3)
    out, reported = process.communicate(timeout=500)
    assert process.returncode == 0, reported
    result = json.loads(out.splitlines()[-1])
    assert result["rows"] == 30
    assert result["shape"] == [32, 32, 3]
    store = S3FileSystem()
    check_student(store, result["student"], tmp_path / "student")
    assert {
        f"data/{path.rpartition('/')[2]}": store.cat_file(path) for path in store.ls("made/here/data")
    } == made.parts
    assert sorted(path.removeprefix("made/here/") for path in store.ls("made/here")) == [
        "README.md",
        "contact_sheet.png",
        "data",
        "index.parquet",
        "manifest.json",
        "report.html",
    ]
    assert status.main(["s3://made/here"]) == 0
    store.rm_file(store.ls("made/here/data")[1])
    assert status.main(["s3://made/here"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing"] == [1]
