"""Lines at the end of jobs: tables, and commands that work as they are printed."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from jobs import calibrate, distill, evaluate, synthesize
from jobs.ending import beside, command, score_line, table_lines
from pipeline import storage
from pipeline.config import from_dict, parse_config
from pipeline.distillation import DistillationConfig
from pipeline.distillation.report import short_table as students
from pipeline.evaluation import EvaluationConfig
from pipeline.models import ModelConfig
from pipeline.models.dinov2 import DINOV2
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.report import short_table
from pipeline.report.page import Table
from pipeline.synthesis import SynthesisConfig

TEACHERS = [
    ModelConfig(name="local-dir:runs/my models/te'acher"),
    ModelConfig(
        name="vit_tiny_patch16_224",
        checkpoint="s3://bucket/a $b.pth",
        use_ema=False,
        num_classes=2,
        model_args={"img_size": 32, "patch_size": 8},
        class_names=("a cat", 'größte, "7"'),
        mean=[0.1, 0.2, 0.3],
        crop_pct=0.95,
        interpolation="bilinear",
    ),
]


def flags_of(line: str, job: str) -> list[str]:
    """Return the flags of the command in a line, as a shell reads them."""
    python, m, module, *flags = shlex.split(line[line.index("python -m") :])
    assert (python, m, module) == ("python", "-m", f"jobs.{job}")
    return flags


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_printed_command_gives_a_job_the_same_teacher(teacher: ModelConfig) -> None:
    line = command("evaluate", teacher, labeled="my photos", labeled_split=None, allow_compiled=True)
    read = parse_config(EvaluationConfig, flags_of(line, "evaluate"))
    assert read == EvaluationConfig(teacher=teacher, labeled="my photos", allow_compiled=True)


def test_a_command_that_would_fill_a_screen_is_not_printed() -> None:
    teacher = ModelConfig(name="vit_tiny_patch16_224", class_names=tuple(f"class {label}" for label in range(1000)))
    config = from_dict(CalibrationConfig, {"teacher": {"name": "x"}, "images": "i", "output": "o"})
    assert len(score_line(config, "o/w8a8.onnx")) == 1
    object.__setattr__(config, "teacher", teacher)
    assert score_line(config, "o/w8a8.onnx") == []


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ("runs/x", "runs/x-int8"),
        ("runs/x/", "runs/x-int8"),
        ("/mnt", "/mnt-int8"),
        ("x", "x-int8"),
        ("s3://bucket/x", "s3://bucket/x-int8"),
        ("s3://bucket", "s3://bucket/int8"),
        ("s3://bucket/", "s3://bucket/int8"),
    ],
)
def test_what_is_made_of_an_output_lies_beside_it_in_the_same_bucket(output: str, place: str) -> None:
    assert beside(output, "int8") == place


REPORT: dict[str, Any] = {
    "latency": "ms per image, median, 2 threads",
    "latency_columns": {"1": "latency_ms", "32": "latency_ms_batch_32"},
    "fp32": [
        {"artifact": "torch", "size_mb": 22.9, "latency_ms": 7.123, "latency_ms_batch_32": 3.5, "top1": 98.6},
        {"artifact": "onnx", "note": "could not be made"},
    ],
    "artifacts": [
        {"weights": 8, "activations": 8, "artifact": "pt2", "uri": "o/w8a8.pt2", "size_mb": 6.1, "latency_ms": 30.25},
        {"weights": 4.5, "activations": 8, "artifact": "onnx", "uri": "o/mixed.onnx", "size_mb": 6.0, "layers": {}},
    ],
}


def test_a_calibration_ends_with_a_row_for_each_artifact_and_float_model() -> None:
    assert table_lines(short_table(REPORT)) == [
        "model  format  top-1 %  size, MB  ms, batch 1  ms, batch 32",
        "-" * 59,
        "fp32    torch    98.60     22.90         7.12           3.5",
        "fp32     onnx        –         –            –             –",
        "W8A8      pt2        –      6.10         30.2             –",
        "mixed    onnx        –      6.00            –             –",
    ]


def test_nothing_made_is_no_table_and_no_command() -> None:
    config = from_dict(CalibrationConfig, {"teacher": {"name": "x"}, "images": "i", "output": "o"})
    report = {**REPORT, "fp32": [], "artifacts": []}
    assert calibrate._ending(config, report) == ["calibrate: times are ms per image, median, 2 threads"]
    assert table_lines(Table(header=["a"], rows=[])) == []


def test_a_compiled_artifact_is_scored_with_leave_to_run_it() -> None:
    config = from_dict(CalibrationConfig, {"teacher": {"name": "x"}, "images": "i", "output": "o", "labeled": "l"})
    row = {"weights": 8, "activations": 8, "artifact": "aoti", "uri": "o/w8a8.aoti.pt2"}
    *_, line = calibrate._ending(config, {**REPORT, "artifacts": [row]})
    read = parse_config(EvaluationConfig, flags_of(line, "evaluate"))
    assert (read.uris, read.allow_compiled, read.output) == (["o/w8a8.aoti.pt2"], True, "o-scores")
    *_, line = calibrate._ending(config, REPORT)
    read = parse_config(EvaluationConfig, flags_of(line, "evaluate"))
    # The ONNX file is the one to deploy.
    assert (read.uris, read.allow_compiled, read.labeled) == (["o/mixed.onnx"], False, "l")


def test_a_training_ends_with_its_students() -> None:
    result = {"teacher_top1": 98.5, "before_top1": 77.0, "best_top1": 98.0, "best_epoch": 4, "top1": 97.5, "epochs": 60}
    result |= {"student": "o/student/best", "last": "o/student/last"}
    assert table_lines(students(result)) == [
        "model            epoch  top-1 %          folder",
        "-" * 47,
        "teacher              –    98.50               –",
        "before training      0    77.00               –",
        "best epoch           4    98.00  o/student/best",
        "last epoch          60    97.50  o/student/last",
    ]
    unlabeled = table_lines(students(result | dict.fromkeys(("teacher_top1", "before_top1", "best_top1", "top1"))))
    assert unlabeled[0].split() == ["model", "epoch", "folder"]
    assert len(unlabeled) == 4


@pytest.mark.parametrize(
    ("architecture", "imported"),
    [("vit_tiny_patch16_224", "import timm; "), (DINOV2, "import timm, pipeline.models; ")],
)
def test_a_student_that_timm_does_not_know_is_loaded_with_this_project(
    architecture: str, imported: str, tmp_path: Path
) -> None:
    values = {"teacher": {"name": "x"}, "student": {"depth_pruned": [0]}, "images": "i", "output": str(tmp_path)}
    students = {name: str(tmp_path / "student" / name) for name in ("best", "last")}
    storage.write_json(f"{students['best']}/config.json", {"architecture": architecture})
    result = {"before_top1": None, "best_top1": None, "best_epoch": 1, "top1": None, "epochs": 1}
    result |= {"student": students["best"], "last": students["last"]}
    *_, line = distill._ending(from_dict(DistillationConfig, values), result)
    wanted = f'timm.create_model("local-dir:{students["best"]}", pretrained=True)'
    assert line == f"load it in Python: {imported}{wanted}"
    # From other storage timm reads no folder, and evaluate does.
    *_, line = distill._ending(from_dict(DistillationConfig, values), result | {"student": "s3://b/o/student/best"})
    read = parse_config(EvaluationConfig, flags_of(line, "evaluate"))
    assert (read.uris, read.labeled) == (["s3://b/o/student/best"], "LABELED")


def test_a_whole_dataset_ends_with_the_command_that_quantizes_on_it() -> None:
    teacher = TEACHERS[1]
    config = SynthesisConfig(teacher=teacher, output="runs/mine", images_per_class=1)
    (line,) = synthesize._ending(config, {"complete": True})
    read = parse_config(CalibrationConfig, flags_of(line, "calibrate"))
    assert (read.teacher, read.images, read.output) == (teacher, "runs/mine", "runs/mine-int8")
    assert synthesize._ending(config, {"complete": False}) == synthesize._ending(config, {"dry_run": True}) == []


@pytest.mark.parametrize("output", [None, "scores"])
def test_an_evaluation_ends_with_its_scores(output: str | None) -> None:
    config = EvaluationConfig(teacher=TEACHERS[0], labeled="l", output=output)
    row = {"artifact": "o/w8a8.onnx", "top1": 98.6, "top5": 100.0, "images": 500}
    header, _, scored, *more = evaluate._ending(config, {"artifacts": [row]})
    assert (header.split()[0], scored.split()) == ("artifact", ["o/w8a8.onnx", "98.60", "100.00", "500"])
    assert [line.endswith("run it again with --output FOLDER") for line in more] == ([True] if output is None else [])
