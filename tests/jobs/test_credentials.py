"""Jobs whose URIs hold credentials write them to no file and print them nowhere, and still continue their runs."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs import calibrate, distill, evaluate, synthesize
from pipeline import credentials
from pipeline.config import from_dict, parse_config
from pipeline.evaluation import EvaluationConfig
from pipeline.synthesis import SynthesisConfig
from pipeline.synthesis.plan import plan_synthesis
from tests.distillation.conftest import write_ragged

pytestmark = pytest.mark.usefixtures("ray_session")

PASSWORD, SIGNATURE = "pass-word-0123", "signature-4567-of-20-letters"


class Handler(BaseHTTPRequestHandler):
    """Serves the files of a folder, whole or in ranges, to those who have password and signature."""

    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        file = self.folder / self.path.partition("?")[0].strip("/")
        if "Basic " not in self.headers.get("Authorization", "") or SIGNATURE not in self.path or not file.is_file():
            return self.send_error(403, f"Forbidden: {self.path}")
        content, wanted = file.read_bytes(), self.headers.get("Range")
        first, last = map(int, (wanted or f"bytes=0-{len(content) - 1}").removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)
        return None

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Beginning of the URIs of files in `tmp_path / "served"`."""
    (tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Handler,), {"folder": tmp_path / "served"}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(credentials, "_known", credentials.Secrets())
    yield f"http://me:{PASSWORD}@127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def flags(values: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def check_clean(folder: Path, printed: str, *, num_files: int) -> None:
    """Look for the credentials in all files of a folder, and in what was printed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= num_files
    contents = {str(path): path.read_bytes() for path in files} | {"printed": printed.encode()}
    for secret in (PASSWORD, SIGNATURE):
        assert [name for name, content in contents.items() if secret.encode() in content] == []


def test_no_job_writes_or_prints_the_credentials_of_its_uris(
    served: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ragged(tmp_path / "served" / "x.parquet", 23)
    weights = tmp_path / "served" / "w.safetensors"
    weights.write_bytes((tiny_folder / "model.safetensors").read_bytes())
    images, checkpoint = f"{served}/x.parquet?sig={SIGNATURE}", f"{served}/w.safetensors?sig={SIGNATURE}"
    teacher = {"teacher.name": f"local-dir:{tiny_folder}", "teacher.checkpoint": checkpoint}
    common = {**teacher, "images": images, "labeled": images, "workers.size": 0, "workers.device": "cpu"}
    training = {"student.depth_pruned": "[1]", "epochs": 1, "augment": "null", "output": tmp_path / "out" / "student"}
    for _ in range(2):
        assert distill.main(flags({**common, **training})) == 0
    calibration = {"formats": "[pt2]", "output": tmp_path / "out" / "int8", "batch_size": 23}
    assert calibrate.main(flags({**common, **calibration})) == 0
    scoring = {
        **teacher,
        "labeled": images,
        "artifacts": f"[{tmp_path}/out/int8/w8a8.pt2]",
        "output": tmp_path / "out" / "scores",
    }
    assert evaluate.main(flags(scoring)) == 0
    # A program that calls the function goes on with the URIs that it gave.
    found = evaluate.evaluate(parse_config(EvaluationConfig, flags({**teacher, "labeled": images})))
    assert found["labelled"] == images
    printed = capsys.readouterr()
    check_clean(tmp_path / "out", printed.out + printed.err, num_files=15)
    check_clean(Path(os.environ["RAY_TMPDIR"], "ray", "session_latest", "logs"), "", num_files=5)
    settings = json.loads((tmp_path / "out" / "int8" / "config.json").read_text())["config"]
    assert settings["images"] == f"http://…@{served.rpartition('@')[2]}/x.parquet?sig=…"


def test_no_manifest_and_no_error_holds_the_credentials(
    served: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "served" / "w.safetensors"
    weights.write_bytes((tiny_folder / "model.safetensors").read_bytes())
    values: dict[str, Any] = {
        "teacher": {"name": f"local-dir:{tiny_folder}", "checkpoint": f"{served}/w.safetensors?sig={SIGNATURE}"},
        "output": str(tmp_path / "out"),
        "images_per_class": 1,
    }
    plan = plan_synthesis(from_dict(SynthesisConfig, values))
    assert PASSWORD not in json.dumps(plan.manifest)
    assert plan.config.teacher.checkpoint == values["teacher"]["checkpoint"]
    named = {"teacher.name": f"local-dir:{tiny_folder}", "images_per_class": 1}
    for location in (f"{served}/absent?sig={SIGNATURE}", f"s3://AKIA:{PASSWORD}@bucket/x", f"az://x?{SIGNATURE}"):
        asked = {**named, "teacher.checkpoint": location, "output": tmp_path / "out"}
        assert synthesize.main([*flags(asked), "-v"]) == 1
        assert synthesize.main([*flags({**named, "output": location}), "-v"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("error: ") >= 6
    check_clean(tmp_path / "out", printed.out + printed.err, num_files=0)
