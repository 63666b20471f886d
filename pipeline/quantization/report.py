"""The page of a calibration: each artifact's accuracy, size and speed, and the ranges that were observed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.quantization.layerwise import Layerwise, sensitivity_table
from pipeline.quantization.plan import CalibrationPlan
from pipeline.quantization.ranges import Ranges, range_errors
from pipeline.report.charts import curves
from pipeline.report.page import Section, Table, html_page
from pipeline.report.strips import bars, intervals, relative_intervals
from pipeline.report.text import short_name
from pipeline.report.writing import settings_section

# Largest number of rows of a table: nobody scrolls through more.
_MOST_ROWS = 160
_WORST = 10

LATENCY = "latency_ms"
_TOP1, _AGREEMENT = "top-1 %", "agreement %"
# Heading → key of a row of `report.json`. A column without a single value is left out.
_COLUMNS = {
    "format": "artifact",
    _TOP1: "top1",
    "top-5 %": "top5",
    _AGREEMENT: "agreement",
    "size, MB": "size_mb",
    "error": "fp32_error",
    "deviation": "deviation",
}
# Columns that are shown in a terminal: those that a person reads first.
_SHORT = ("artifact", "top1", "agreement", "size_mb")
_ABOUT = (
    "Size and time are of the file in its own runtime; fp32 is the model before quantization. Error is the relative "
    "distance of the logits from the float model's, on {compared} of the {images} calibration images, one drawn from "
    "each of {compared} equal parts of them; deviation that from the quantized graph which the file was made of, which "
    "tells a faulty file."
)
_HELD_BACK = (
    " On images that were not trained on, as they are: divergence of the answers from the float model's, in nats, and "
    "the share of images put into another class, before the training and at its best step. The trained model is kept "
    "if it has taken enough of the divergence away (`qat.min_gain`), otherwise the calibrated one."
)
_SCORED = " Agreement is the share of the labeled images that an artifact answers as the first fp32 model does."


def latency_columns(batch_sizes: Sequence[int]) -> dict[int, str]:
    """Return the key in a row of `report.json` for each batch size: `latency_ms` for the first of them."""
    return {size: f"{LATENCY}_batch_{size}" if place else LATENCY for place, size in enumerate(batch_sizes)}


def calibration_page(
    plan: CalibrationPlan,
    report: Mapping[str, Any],
    ranges: Ranges,
    layerwise: Layerwise | None,
    losses: Mapping[str, Sequence[float]],
) -> str:
    """Return the HTML page of a calibration.

    Args:
        plan: plan of the calibration.
        report: content of `report.json`.
        ranges: smallest and largest activations observed, by point.
        layerwise: sensitivities of the layers; None if they were not measured.
        losses: loss of each step of a training, by the model's label; empty without `qat`.

    Raises:
        DatasetError: the reference has other observers, or no range to compare with.
    """
    compared = [] if plan.reference is None else [_compared(ranges, plan.reference)]
    layers = [] if layerwise is None else [_sensitivity(layerwise)]
    trained = [_trained(report["qat"], losses)] if "qat" in report else []
    sections = [_summary(plan, report), _artifacts(report), *trained, *layers, *compared, _ranges(ranges)]
    title = f"{short_name(plan.loaded.name)}, quantized"
    return html_page(title, [*sections, settings_section(plan.document["config"])])


def _summary(plan: CalibrationPlan, report: Mapping[str, Any]) -> Section:
    rows: list[list[str | int | float | None]] = [
        ["complete", "yes" if report["complete"] else "no: some artifacts are not as they should be"],
        ["images", report["images"]],
        ["read from", plan.images.uri],
        ["workers", len(report["images_per_worker"])],
        ["placement, mode", f"{report['placement']}, {report['mode']}"],
        ["teacher", plan.loaded.name],
        ["its weights (SHA-256)", plan.loaded.digest[:16]],
        ["time", report["latency"]],
        ["folder", plan.config.output],
    ]
    if "range_error" in report:
        rows.insert(2, ["range error against the reference", f"{report['range_error']:.4f}"])
    if "left" in report:
        rows.append(["of an earlier run, not measured anew", ", ".join(report["left"])])
    return Section(heading="What was calibrated", tables=[Table(header=["", ""], rows=rows)])


def _artifacts(report: Mapping[str, Any]) -> Section:
    rows = _labeled_rows(report)
    known = _COLUMNS | {f"ms per image, batch {size}": key for size, key in report["latency_columns"].items()}
    columns = {heading: key for heading, key in known.items() if any(key in row for _, row in rows)}
    table = Table(header=["model", *columns], rows=[[model, *_cells(row, columns)] for model, row in rows])
    notes = [[f"{model} {row['artifact']}", row["note"]] for model, row in rows if "note" in row]
    failed = [[row["artifact"], row["reason"]] for row in report.get("failed", ())]
    tables = [table, *_worded("about", notes), *_worded("not written", failed)]
    scored = {f"{model} {row['artifact']}": row["top1"] for model, row in rows if "top1" in row}
    plots = [("top-1 on the labeled images", bars(scored, x_label="%", x_range=(0, 100)))] if scored else []
    about = _ABOUT.format(compared=report["compared_images"], images=report["images"])
    return Section(heading="Artifacts", text=about + (_SCORED if scored else ""), tables=tables, plots=plots)


def short_table(report: Mapping[str, Any]) -> Table:
    """Return the accuracy, size and speed of each artifact and of the float models, for a terminal."""
    columns = {heading: key for heading, key in _COLUMNS.items() if key in _SHORT}
    columns |= {f"ms, batch {size}": key for size, key in report["latency_columns"].items()}
    rows = [[model, *_cells(row, columns)] for model, row in _labeled_rows(report)]
    return Table(header=["model", *columns], rows=rows)


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of each artifact, nested by its bit widths and its format, and whether all is well."""
    found: dict[str, Any] = {"complete": report["complete"], "images": report["images"]}
    if "range_error" in report:
        found["range_error"] = report["range_error"]
    keys = {*_COLUMNS.values(), *report["latency_columns"].values()} - {"artifact"}
    for label, row in _labeled_rows(report):
        found.setdefault(label, {})[row["artifact"]] = {key: row[key] for key in sorted(keys) if key in row}
    return found


def _labeled_rows(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [("fp32", row) for row in report["fp32"]] + [(_label(row), row) for row in report["artifacts"]]


def _label(row: Mapping[str, Any]) -> str:
    return "mixed" if "layers" in row else f"W{row['weights']}A{row['activations']}"


def _trained(rows: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Sequence[float]]) -> Section:
    note = (
        "Mean divergence of the quantized model's softened answers from the float model's, in nats, on views of the "
        "images: over the first and the last tenth of the steps. Ranges, sensitivities, and the disagreement of "
        "`mixed` on this page are those of before."
    )
    measured = any("kept" in row for row in rows.values())
    table = [[label, *_training_cells(row, measured=measured)] for label, row in rows.items()]
    header = ["model", "steps", "loss at first", "loss at the end"]
    if measured:
        note += _HELD_BACK
        header += ["divergence before", "after", "disagreement before, %", "after", "of step", "kept"]
    points = {label: list(enumerate(of_steps, start=1)) for label, of_steps in losses.items()}
    plot = curves(points, x_label="step", y_label="loss")
    return Section(
        heading="Quantization-aware distillation",
        text=note,
        tables=[Table(header=header, rows=table)],
        plots=[("loss of each step", plot)],
    )


def _training_cells(row: Mapping[str, Any], *, measured: bool) -> Iterator[str | int | float | None]:
    yield row["steps"]
    for name in ("first_loss", "last_loss"):
        yield f"{row[name]:.4g}"
    if measured:
        for name in ("divergence_before", "divergence", "disagreement_before", "disagreement"):
            yield f"{row[name]:.4g}"
        yield row["best_step"]
        yield row["kept"]


def _sensitivity(found: Layerwise) -> Section:
    note = (
        f"Mean divergence of the answers from those in float, in nats, on {found.num_images} images, without labels: "
        "with only the layer quantized (alone), and with all layers but it. The layer that hurts most comes first."
    )
    plots = []
    for label, table in found.tables.items():
        alone = {row.layer: row.alone for row in sorted(table, key=lambda row: -row.alone)[:_MOST_ROWS]}
        plots.append((f"{label.upper()}, each layer alone", bars(alone, x_label="nats")))
    tables = [sensitivity_table(table) for table in found.tables.values()]
    return Section(heading="Sensitivity of the layers", text=note, tables=tables, plots=plots)


def _cells(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str | float | None]:
    for key in columns.values():
        value = row.get(key)
        short = key in ("fp32_error", "deviation") or key.startswith(LATENCY)
        yield f"{value:.3g}" if short and value is not None else value


def _worded(heading: str, rows: list[list[str]]) -> list[Table]:
    return [Table(header=[heading, ""], rows=rows)] if rows else []


def _compared(ranges: Ranges, reference: Ranges) -> Section:
    errors = range_errors(ranges, reference)
    worst = sorted(errors, key=lambda name: -errors[name])[:_WORST]
    rows = [[name, f"{errors[name]:.3f}", _range(ranges[name]), _range(reference[name])] for name in worst]
    # Activations that are constant in the reference are left out.
    shares = {name: _relative(ranges[name], reference[name]) for name in list(errors)[:_MOST_ROWS]}
    note = (
        "Each layer's range on these images in blue; the band is its range on the reference's images. A range that "
        "sticks out wastes steps of the scale, and one that falls short clips real activations. An orange dot stands "
        f"for a value beyond the plot. The error of a layer is (|Δmin| + |Δmax|) / reference range; {len(worst)} of "
        f"{len(errors)} layers are listed, the worst first.{_left_out(len(errors))}"
    )
    header = ["observer", "error", "these images", "reference"]
    plot = relative_intervals(shares, x_label="0 and 1: the ends of the reference's range")
    return Section(
        heading="Ranges against the reference",
        text=note,
        tables=[Table(header=header, rows=rows)],
        plots=[("activation ranges by layer", plot)],
    )


def _relative(own: tuple[float, float], reference: tuple[float, float]) -> tuple[float, float]:
    low, high = reference
    return (own[0] - low) / (high - low), (own[1] - low) / (high - low)


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3g} to {bounds[1]:.3g}"


def _ranges(ranges: Ranges) -> Section:
    shown = dict(list(ranges.items())[:_MOST_ROWS])
    note = "Least and largest activation at each place. The axis is logarithmic beyond 1."
    plot = intervals(shown, x_label="activation")
    return Section(heading="Ranges", text=note + _left_out(len(ranges)), plots=[("as in ranges.json", plot)])


def _left_out(number: int) -> str:
    return f" The plot shows the first {_MOST_ROWS} of {number} places." if number > _MOST_ROWS else ""
