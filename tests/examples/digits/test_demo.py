"""The demo's figures, claims and page, from made-up results; and that it replaces nothing but its own output."""

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from examples.digits.demo import ARMS, STAGES, Demo, DemoConfig, _begin, main, run_demo
from examples.digits.pictures import draw_images
from examples.digits.report import check_claims, render, results, summary_tables
from examples.digits.teacher import CLASS_NAMES
from pipeline import storage
from pipeline.config import parse_config
from pipeline.dataset import discovery
from pipeline.dataset.store import write_images
from pipeline.errors import ConfigError
from pipeline.report.page import text_table
from tests.report.page_check import check_page

STUDENTS = {"sparse": 95.0, "dense": 85.0, "real": 97.0, "noise": 80.0}
ERRORS = {"sparse": 0.1, "dense": 0.07, "real": 0.04, "noise": 0.14}


def calibration(drop: float) -> dict[str, Any]:
    bits = [(8, 8, 0.2), (4, 8, 1.0), (4, 4, 3.0)]
    rows = [
        {
            "weights": w,
            "activations": a,
            "artifact": kind,
            "top1": 98.6 - lost - drop,
            "size_mb": 0.5,
            "latency_ms": 0.1,
        }
        for w, a, lost in bits
        for kind in ("pt2", "onnx")
    ]
    fp32 = [{"artifact": "torch", "size_mb": 0.8, "latency_ms": 0.2}]
    return {"artifacts": rows, "fp32": fp32, "latency": "ms per image", "latency_columns": {"1": "latency_ms"}}


@pytest.fixture
def calibrations() -> dict[str, Any]:
    return {data: calibration(0.1 if data == "noise" else 0.0) for data in ARMS}


@pytest.fixture
def report(calibrations: dict[str, Any]) -> dict[str, Any]:
    made = {"num_images": 200, "seconds": 14.0, "teacher_confidence": 0.95, "num_shards": 4}
    students = {
        data: [{"before_top1": 72.0, "top1": top1 - 1}, {"before_top1": 72.0, "top1": top1 + 1}]
        for data, top1 in STUDENTS.items()
    }
    return results(98.6, {"sparse": made, "dense": made}, calibrations, ERRORS, students)


def test_report_has_the_shape_that_is_promised(report: dict[str, Any]) -> None:
    assert report["teacher"] == {"top1": 98.6}
    assert report["synthesis"]["dense"] == {"images": 200, "seconds": 14.0, "teacher_confidence": 0.95}
    assert len(report["quantization"]) == 4 * 3 * 2
    assert set(report["quantization"][0]) == {"weights", "activations", "data", "artifact", "top1", "range_error"}
    assert report["distillation"][0] == {"data": "sparse", "before_top1": 72.0, "top1": 95.0}


def test_all_claims_met(report: dict[str, Any]) -> None:
    claims = check_claims(report)
    assert len(claims) == 10
    assert [claim.text for claim in claims if not claim.met] == []
    assert claims[-1].value == pytest.approx((95 - 72) / (97 - 72))


@pytest.mark.parametrize(
    ("change", "not_met"),
    [
        ({"teacher": 96.8}, ["teacher", "W8A8 on sparse images, pt2", "W8A8 on sparse images, onnx"]),
        ({"student": ("real", 94.9)}, ["student on real images"]),
        ({"student": ("noise", 90.1)}, ["points above noise"]),
        ({"student": ("sparse", 76.9)}, ["untrained self", "points above noise", "share recovered"]),
        ({"quantized": (8, "sparse", "onnx", 98.0)}, ["W8A8 on sparse images, onnx"]),
        ({"quantized": (4, "sparse", "pt2", 94.0)}, ["W4A4 on sparse images, pt2"]),
        ({"range_error": ("sparse", 0.15)}, ["activation ranges"]),
    ],
)
def test_each_claim_can_fail(report: dict[str, Any], change: dict[str, Any], not_met: list[str]) -> None:
    changed = copy.deepcopy(report)
    if "teacher" in change:
        changed["teacher"]["top1"] = change["teacher"]
    for row in changed["distillation"]:
        if row["data"] == change.get("student", (None,))[0]:
            row["top1"] = change["student"][1]
    for row in changed["quantization"]:
        if row["data"] == change.get("range_error", (None,))[0]:
            row["range_error"] = change["range_error"][1]
        if (row["activations"], row["data"], row["artifact"]) == change.get("quantized", ())[:3] and row["weights"] in (
            change["quantized"][0],
        ):
            row["top1"] = change["quantized"][3]
    failed = [claim.text for claim in check_claims(changed) if not claim.met]
    assert len(failed) == len(not_met)
    for text, part in zip(failed, not_met, strict=True):
        assert part in text


def test_bounds_are_met_at_the_bound(report: dict[str, Any]) -> None:
    """98.8 - 98.3 is 0.5 to a reader, and a little more to a computer."""
    report["teacher"]["top1"] = 98.8
    for row in report["quantization"]:
        if (row["weights"], row["activations"]) == (8, 8):
            row["top1"] = 98.3
    assert all(claim.met for claim in check_claims(report))


def test_tables_tell_what_was_not_met(report: dict[str, Any]) -> None:
    report["teacher"]["top1"] = 99.0
    texts = [text_table(table) for table in summary_tables(report, check_claims(report))]
    assert "W4A4 onnx" in texts[1]
    assert texts[3].count("NOT MET") == 2


def write_set(uri: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 32, 32, 1), np.uint8)
    write_images(uri, pixels, [number // 2 for number in range(20)], CLASS_NAMES)


def test_page_holds_tables_curves_and_images_of_every_set(
    report: dict[str, Any], calibrations: dict[str, Any], tmp_path: Path
) -> None:
    demo = Demo(DemoConfig(output=str(tmp_path)))
    storage.write_json(demo.path("digits", "history.json"), {"top1": [50.0, 98.0], "loss": [2.0, 0.1]})
    for seed, data in enumerate(ARMS):
        uri = demo.images[data]
        write_set(uri if uri.endswith(".parquet") else storage.join(uri, "data", "part.parquet"), seed)
        storage.write_bytes(demo.path("distill", f"{data}-0", "metrics.jsonl"), b'{"loss": 2.0}\n{"loss": 1.0}\n')
    storage.write_bytes(demo.path("distill", "real-mine", "metrics.jsonl"), b"no training of the demo")
    picture = draw_images({data: demo.images[data] for data in ARMS})
    with Image.open(io.BytesIO(picture)) as sheet:
        # Ten classes a row, two rows a set.
        assert sheet.size == (10 * 70 + 6, 2 * len(ARMS) * 88 + 6)
    page = render(str(tmp_path), picture, report, check_claims(report), calibrations, {"teacher": 80.0})
    assert check_page(page).tags.count("polyline") == 1 + len(ARMS)
    assert len(re.findall("<img ", page)) == 1
    assert "even ranges taken from noise keep" in page
    assert "not the best student" in page
    assert len(re.findall("<table>", page)) == 2 + 1 + 2 + 1
    assert "<a " not in page
    for folder in ("sparse", "calibrate/real", "distill/noise-0", "distill/noise-7", "distill/real-mine"):
        storage.write_bytes(demo.path(folder, "report.html"), b"a page")
    figures = report, check_claims(report), calibrations, {"teacher": 80.0}
    linked = check_page(render(str(tmp_path), picture, *figures, demo.pages())).links
    # Of the seeds 0, 1 and 2.
    assert linked == [f"{folder}/report.html" for folder in ("sparse", "calibrate/real", "distill/noise-0")]


# Each actor is a process that imports torch, and each held-out image is scored by every artifact and student.
SMALL_POOL = {"min_size": 1, "max_size": 1, "cpus_per_actor": 1}
SMALL: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 1, "batch_size": 256, "images_per_class": 2, "held_out": 50},
    "evaluate": {},
    "sparse": {
        "images_per_class": 2,
        "inversion": {"iterations": 4, "stop_steps": [1, 2], "stop_fractions": [0.5, 0.5]},
        "pool": SMALL_POOL,
    },
    "dense": {
        "images_per_class": 2,
        "inversion": {"iterations": 2, "stop_steps": [], "stop_fractions": []},
        "pool": SMALL_POOL,
    },
    "noise": {
        "images_per_class": 2,
        "inversion": {"iterations": 0, "stop_steps": [], "stop_fractions": []},
        "pool": SMALL_POOL,
    },
    "calibrate": {
        "workers": {"size": 0},
        "settings": [{"weights": 8, "activations": 8}, {"weights": 4, "activations": 4}],
        "latency_batch_size": 1,
    },
    "distill": {"epochs": 1, "workers": {"size": 0}},
}


def write_small_stages(folder: Path) -> None:
    """The demo's own configs, with so little of everything that it takes a minute."""
    folder.mkdir()
    for name, changes in SMALL.items():
        settings = yaml.safe_load(Path(STAGES, f"{name}.yaml").read_text())
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**settings, **changes}))


# Five calibrations and four trainings, each with workers of its own: minutes on a busy machine.
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_session")
def test_all_stages_one_after_the_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A teacher that has learned almost nothing: all outputs are there, and claims that fail are reported."""
    write_small_stages(tmp_path / "stages")
    output = tmp_path / "demo"
    flags = [f"--output={output}", f"--stages={tmp_path / 'stages'}", "--student_seeds=[3]"]
    assert main(flags) == 1
    summary = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert not summary["complete"]
    assert any("teacher" in text for text in summary["claims_not_met"])
    report = json.loads((output / "report.json").read_text())
    assert set(report) == {"teacher", "synthesis", "quantization", "distillation"}
    assert {kind: made["images"] for kind, made in report["synthesis"].items()} == {"sparse": 20, "dense": 20}
    assert len(report["quantization"]) == 4 * 2 * 2
    assert [row["data"] for row in report["distillation"]] == list(ARMS)
    assert all(0 <= row["top1"] <= 100 for row in (*report["quantization"], *report["distillation"]))
    assert all(row["range_error"] > 0 for row in report["quantization"])
    page = check_page((output / "report.html").read_text())
    assert page.tags.count("img") == 1
    # evaluate, three datasets, five calibrations, a student on each set of images.
    assert len(page.links) == len(set(page.links)) == 1 + 3 + 5 + len(ARMS)
    assert all((output / link).is_file() for link in page.links)
    rows = {data: discovery.find_source(str(output / data)).num_rows for data in ("sparse", "dense", "noise")}
    assert rows == {"sparse": 20, "dense": 20, "noise": 20}


def test_what_is_not_the_demos_own_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["--output", str(tmp_path)]) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line == (
        f"error: ConfigError: output {str(tmp_path)!r} is not empty and holds no demo.json of an earlier demo: give "
        "another output, or delete the folder"
    )
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_second_demo_deletes_what_the_first_made_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = {"mine.txt", "rebirth/manifest.json", "calibrate/mine/w8a8.pt2", "distill/real-mine/result.json"}
    made = {"claims.json", "digits/history.json", "sparse/data/part", "calibrate/real/w8a8.pt2", "distill/real-12/x"}
    for name in ("demo.json", *mine, *made):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    _begin(DemoConfig(output=str(tmp_path)))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"demo.json", *mine}
    assert capsys.readouterr().err == (
        f"demo: made anew in {str(tmp_path)!r}: digits, sparse, claims.json, calibrate/real, distill/real-12\n"
    )


def test_an_earlier_demo_whose_deletion_was_interrupted_is_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo.json", "report.html", "sparse/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("examples.digits.demo.shutil.rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _begin(DemoConfig(output=str(tmp_path)))
    monkeypatch.undo()
    _begin(DemoConfig(output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_remote_output_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory://demo"):
        run_demo(DemoConfig(output="memory://demo"))


def test_student_seeds_must_differ() -> None:
    with pytest.raises(ConfigError, match=r"\[1, 1\]"):
        parse_config(DemoConfig, ["--student_seeds=[1, 1]"])
