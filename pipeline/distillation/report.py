"""The page of a distillation: how the loss fell, and how student and teacher classify held-out images."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.distillation.config import StudentConfig
from pipeline.distillation.objective import TERMS
from pipeline.distillation.plan import DistillationPlan
from pipeline.distillation.state import TrainingState
from pipeline.report.charts import curves
from pipeline.report.confusion import confusion_section
from pipeline.report.page import Section, Table, html_page
from pipeline.report.text import short_name
from pipeline.report.writing import settings_section

_TERMS_ABOUT = (
    "Means over the images of each epoch: kl is the divergence of the student's softened answers from the teacher's in "
    "nats, times the square of the temperature, tokens the squared difference of their final tokens, and loss the "
    "weighted sum. "
)
_LABELS_ABOUT = (
    "labels is the cross-entropy of the labels over the images that have one, {labeled} of {images} in the last epoch: "
    "mixtures have none, and add nothing to the loss for it. "
)


def distillation_page(plan: DistillationPlan, result: Mapping[str, Any], state: TrainingState) -> str:
    """Return the HTML page of a distillation.

    Args:
        plan: plan of the training.
        result: content of `result.json`.
        state: state of the training after the last epoch.
    """
    sections = [_summary(plan, result), _loss(state.history), _scores(plan, result, state.history)]
    sections += _confusions(plan, state)
    sections.append(settings_section(plan.document["config"]))
    return html_page(f"A student of {short_name(plan.teacher.name)}", sections)


def short_table(result: Mapping[str, Any]) -> Table:
    """Return where the students are and how often they and the teacher are right, for a terminal.

    Args:
        result: content of `result.json`.
    """
    rows: list[list[str | int | float | None]] = [
        ["best epoch", result["best_epoch"], result["best_top1"], result["student"]],
        ["last epoch", result["epochs"], result["top1"], result["last"]],
    ]
    # Without labeled images no accuracy is known.
    if result["before_top1"] is not None:
        rows.insert(0, ["before training", 0, result["before_top1"], "–"])
    # Results of earlier versions do not have the teacher's accuracy.
    if result.get("teacher_top1") is not None:
        rows.insert(0, ["teacher", "–", result["teacher_top1"], "–"])
    return Table(header=["model", "epoch", "top-1 %", "folder"], rows=rows)


def _summary(plan: DistillationPlan, result: Mapping[str, Any]) -> Section:
    rows: list[list[str | int | float | None]] = [
        ["top-1 before training, %", result["before_top1"]],
        ["top-1 after the last epoch, %", result["top1"]],
        ["best top-1, %", result["best_top1"]],
        ["best epoch", result["best_epoch"]],
        ["epochs", result["epochs"]],
        ["training images", result["images"]],
        ["read from", plan.images.uri],
        ["loss of the last epoch", f"{result['loss']:.4g}"],
        ["seconds of this run", result["seconds"]],
        ["teacher", plan.teacher.name],
        ["student", _student(plan.config.student)],
        ["best student", result["student"]],
    ]
    if result["teacher_top1"] is not None:
        rows.insert(0, ["top-1 of the teacher, %", result["teacher_top1"]])
    return Section(heading="What was trained", tables=[Table(header=["", ""], rows=rows)])


def _student(config: StudentConfig) -> str:
    kept = config.depth_pruned
    what = (
        f"blocks {', '.join(map(str, kept))} of the teacher" if kept is not None else getattr(config.model, "name", "")
    )
    return f"{what}, a linear head alone is trained" if config.linear_head else what


def _loss(history: Sequence[Mapping[str, float]]) -> Section:
    def points(name: str) -> list[tuple[float, float]]:
        return [(row["epoch"], row[name]) for row in history if name in row]

    # A term without a weight is 0 throughout.
    used = [name for name in TERMS if any(value for _, value in points(name))]
    plots = [
        ("loss and its terms", curves({name: points(name) for name in used}, x_label="epoch", y_label="loss")),
        ("learning rate", curves({"lr": points("lr")}, x_label="epoch", y_label="learning rate")),
    ]
    last = history[-1]
    # Mixtures of images have no label.
    about = _LABELS_ABOUT.format(**last) if "labeled" in last else ""
    return Section(heading="Loss", text=_TERMS_ABOUT + about, plots=plots)


def _scores(plan: DistillationPlan, result: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> Section:
    scored = [(row["epoch"], row["top1"]) for row in history if "top1" in row]
    if plan.labeled is None or not scored:
        note = "No labeled images were given, so the student with the least training loss counts as the best."
        return Section(heading="Held-out images", text=note)
    before = [(0.0, result["before_top1"])] if result["before_top1"] is not None else []
    note = (
        f"Top-1 on {plan.labeled.num_rows} labeled images of {plan.labeled.uri}, before training and at each scored "
        "epoch."
    )
    plot = curves({"top-1": [*before, *scored]}, x_label="epoch", y_label="top-1 %")
    return Section(heading="Held-out images", text=note, plots=[("held-out top-1", plot)])


def _confusions(plan: DistillationPlan, state: TrainingState) -> list[Section]:
    """Return which classes teacher and best student take for which, where labeled images were given."""
    models = {
        "Classes: the teacher": (state.teacher_confusion, "The teacher:"),
        "Classes: the best student": (state.best_confusion, f"The student after epoch {state.best_epoch}:"),
    }
    names = plan.teacher.class_names
    return [confusion_section(title, counts, names, text=text) for title, (counts, text) in models.items() if counts]
