"""Report of the demo: figures as JSON, the claims they support, and an HTML page."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline import storage
from pipeline.report.charts import curves
from pipeline.report.page import Section, Table, html_page
from pipeline.report.svg import Plot
from pipeline.report.writing import PAGE

ARTIFACTS = ("pt2", "onnx")


@dataclass(frozen=True, kw_only=True)
class FigureClaim:
    """Something that the demo's figures must show."""

    text: str
    value: float
    bound: float
    met: bool


def results(
    teacher_top1: float,
    synthesis: Mapping[str, Mapping[str, Any]],
    calibrations: Mapping[str, Mapping[str, Any]],
    range_errors: Mapping[str, float],
    students: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """The figures, as `report.json` holds them; `top1` in percent.

    Args:
        teacher_top1: in percent.
        synthesis: by kind, what `synthesize` returned.
        calibrations: by data, what `calibrate` returned.
        range_errors: by data, see `pipeline.quantization.range_error`.
        students: by data, what `distill` returned for each seed.
    """
    return {
        "teacher": {"top1": teacher_top1},
        "synthesis": {
            kind: {"images": made["num_images"]} | {name: made[name] for name in ("seconds", "teacher_confidence")}
            for kind, made in synthesis.items()
        },
        "quantization": _quantization(calibrations, range_errors),
        "distillation": [
            {
                "data": data,
                "before_top1": fmean(run["before_top1"] for run in runs),
                "top1": fmean(run["top1"] for run in runs),
            }
            for data, runs in students.items()
        ],
    }


def _quantization(
    calibrations: Mapping[str, Mapping[str, Any]], range_errors: Mapping[str, float]
) -> list[dict[str, Any]]:
    return [
        {name: row[name] for name in ("weights", "activations", "artifact", "top1")}
        | {"data": data, "range_error": range_errors[data]}
        for data, done in calibrations.items()
        for row in done["artifacts"]
    ]


def check_claims(report: Mapping[str, Any]) -> list[FigureClaim]:
    """Hold the figures against what the demo promises."""
    student = {row["data"]: row["top1"] for row in report["distillation"]}
    before = next(row["before_top1"] for row in report["distillation"] if row["data"] == "sparse")
    gained, possible = student["sparse"] - before, student["real"] - before
    return [
        _at_least("teacher, top-1", report["teacher"]["top1"], 97.0),
        _at_least("student on real images, top-1", student["real"], 95),
        *_claims_of_quantization(report),
        _at_least("student on sparse images: points above its untrained self", gained, 5.0),
        _at_least("student on sparse images: points above noise", student["sparse"] - student["noise"], 5.0),
        _at_least("student on sparse images: share recovered of what real images recover", gained / possible, 0.9),
    ]


def _claims_of_quantization(report: Mapping[str, Any]) -> list[FigureClaim]:
    teacher = report["teacher"]["top1"]
    quantized = {
        (row["weights"], row["activations"], row["data"], row["artifact"]): row["top1"]
        for row in report["quantization"]
    }
    error = {row["data"]: row["range_error"] for row in report["quantization"]}
    claims = []
    for artifact in ARTIFACTS:
        lost = teacher - quantized[8, 8, "sparse", artifact]
        claims.append(_at_most(f"W8A8 on sparse images, {artifact}: points away from the teacher", abs(lost), 0.5))
    for artifact in ARTIFACTS:
        lost = quantized[4, 4, "real", artifact] - quantized[4, 4, "sparse", artifact]
        claims.append(_at_most(f"W4A4 on sparse images, {artifact}: points below real images", lost, 1.5))
    return [
        *claims,
        FigureClaim(
            text="error of activation ranges: sparse images below noise",
            value=error["sparse"],
            bound=error["noise"],
            met=error["sparse"] < error["noise"],
        ),
    ]


def _at_least(text: str, value: float, bound: float) -> FigureClaim:
    return FigureClaim(text=f"{text}, at least", value=value, bound=bound, met=_rounded(value) >= bound)


def _at_most(text: str, value: float, bound: float) -> FigureClaim:
    return FigureClaim(text=f"{text}, at most", value=value, bound=bound, met=_rounded(value) <= bound)


def _rounded(value: float) -> float:
    # Differences of percentages: 98.8 - 98.3 is not 0.5 to the last bit.
    return round(value, 6)


def summary_tables(report: Mapping[str, Any], claims: Sequence[FigureClaim]) -> list[Table]:
    """Synthesis, quantization, distillation, claims."""
    return [
        Table(
            header=["synthesis", "images", "seconds", "teacher confidence"],
            rows=[
                [kind, made["images"], made["seconds"], made["teacher_confidence"]]
                for kind, made in report["synthesis"].items()
            ],
        ),
        _quantization_table(report),
        Table(
            header=["student on", "top-1 before", "top-1 after"],
            rows=[[row["data"], row["before_top1"], row["top1"]] for row in report["distillation"]],
        ),
        Table(
            header=["the demo's claims", "value", "bound", ""],
            rows=[[c.text, f"{c.value:.3g}", f"{c.bound:.3g}", "met" if c.met else "NOT MET"] for c in claims],
        ),
    ]


def _quantization_table(report: Mapping[str, Any]) -> Table:
    """A row for each set of images, a column for each bit width and artifact."""
    columns: dict[str, dict[str, float]] = {}
    errors: dict[str, float] = {}
    for row in report["quantization"]:
        name = f"W{row['weights']}A{row['activations']} {row['artifact']}"
        columns.setdefault(name, {})[row["data"]] = row["top1"]
        errors[row["data"]] = row["range_error"]
    return Table(
        header=["top-1, calibrated on", *columns, "range error"],
        rows=[[data, *(column[data] for column in columns.values()), f"{errors[data]:.3f}"] for data in errors],
    )


def render(
    output: str,
    picture: bytes,
    report: Mapping[str, Any],
    claims: Sequence[FigureClaim],
    calibrations: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
    stages: Sequence[str] = (),
) -> str:
    """The page: contact sheets, curves, tables.

    Args:
        output: the demo's.
        picture: see `examples.digits.pictures.draw_images`.
        report: see `results`.
        claims: see `check_claims`.
        calibrations: by data, what `calibrate` returned.
        seconds: by stage.
        stages: folders in the output with a page of their own, to which this one links.
    """
    synthesis, quantization, distillation, promised = summary_tables(report, claims)
    links = [(stage, f"{stage}/{PAGE}") for stage in stages]
    times = Table(header=["stage", "seconds"], rows=list(seconds.items()))
    return html_page(
        "From a teacher to a dataset, an int8 model and a student",
        [
            Section(heading="What it shows", text=_ABOUT, tables=[promised, times]),
            *([Section(heading="Pages of the stages", text=_PAGES, links=links)] if links else []),
            _teacher(output, report["teacher"]["top1"]),
            Section(heading="Images", tables=[synthesis], pictures=[("the first of each set", picture)]),
            Section(heading="Quantization", text=_QUANTIZATION, tables=[quantization, _runtime_table(calibrations)]),
            _students(output, distillation, list(calibrations)),
        ],
    )


def _teacher(output: str, top1: float) -> Section:
    history = storage.read_json(storage.join(output, "digits", "history.json"))
    plot = curves({"held-out": _by_epoch(history["top1"])}, x_label="epoch", y_label="top-1 %")
    return Section(
        heading="Teacher",
        text=f"{top1:.1f}% of 500 held-out scans.",
        plots=[("top-1 on held-out scans while the teacher trains", plot)],
    )


def _students(output: str, scores: Table, arms: Sequence[str]) -> Section:
    return Section(
        heading="Distillation",
        tables=[scores],
        text="Losses are on each set's own images: the lowest is of the easiest images, not the best student.",
        plots=[("mean loss over the seeds", _student_curves(output, arms))],
    )


_ABOUT = (
    "A small Vision Transformer was trained on handwritten digits, then inverted into synthetic images. The teacher "
    "was quantized, and a student with half its blocks distilled, on each of four sets with equally many images: "
    "sparse and dense inversions, real scans, and the noise that inversion starts from. All scores are "
    "top-1 in percent on 500 held-out scans; students are means over the seeds, after the last epoch."
)
_PAGES = "Each stage is a job, which wrote a page of its own, with all its settings at the end."
_QUANTIZATION = (
    "Range error: mean over activation observers of (|Δmin| + |Δmax|) / range, against real scans that no set holds. "
    "Four-bit weights and activations are kept in int8: they show the accuracy, and are neither smaller nor faster "
    "on a CPU runtime than eight bits. The .pt2 is the reference and slower than fp32; ONNX is what to deploy. "
    "Without smoothing, as here, even ranges taken from noise keep this small teacher's accuracy; with smoothing: repq "
    "they do not, and real or synthetic images are needed."
)


def _runtime_table(calibrations: Mapping[str, Mapping[str, Any]]) -> Table:
    """Size and latency; they do not depend on the images, so those of the first set stand for all."""
    done = next(iter(calibrations.values()))
    batch_size = next(iter(done["latency_columns"]))
    rows = [["fp32", row["artifact"], row["size_mb"], row.get("latency_ms")] for row in done["fp32"]]
    rows += [
        [f"W{row['weights']}A{row['activations']}", row["artifact"], row["size_mb"], row.get("latency_ms")]
        for row in done["artifacts"]
    ]
    return Table(
        header=["model", "artifact", "size (MB)", f"{done['latency']}, batch {batch_size}"],
        rows=rows,
    )


def _student_curves(output: str, arms: Sequence[str]) -> Plot:
    losses = {data: _by_epoch(_mean_losses(output, data)) for data in arms}
    return curves(losses, x_label="epoch", y_label="loss on their own images")


def _by_epoch(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(epoch), value) for epoch, value in enumerate(values, 1)]


def _mean_losses(output: str, data: str) -> list[float]:
    """Training loss by epoch, mean over the seeds."""
    folder = storage.join(output, "distill")
    # Without those that a user trained there.
    demos = re.compile(rf"{data}--?\d+/metrics\.jsonl")
    runs = [
        [json.loads(line)["loss"] for line in storage.read_bytes(storage.join(folder, name)).splitlines()]
        for name, _ in storage.find_files(folder)
        if demos.fullmatch(name)
    ]
    return [fmean(epoch) for epoch in zip(*runs, strict=True)]
