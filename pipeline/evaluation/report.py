"""The page of an evaluation: how often artifacts are right, and which classes they take for which."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.scores import Score
from pipeline.report.confusion import confusion_section
from pipeline.report.page import Section, Table, html_page
from pipeline.report.strips import bars
from pipeline.report.text import short_name
from pipeline.report.writing import settings_section

# Largest number of artifacts whose confusion is drawn: each takes a plot of its own.
_MOST_ARTIFACTS = 12


def evaluation_page(config: Mapping[str, Any], scores: Mapping[str, Score], class_names: Sequence[str]) -> str:
    """Return the HTML page of an evaluation.

    Args:
        config: settings of the evaluation.
        scores: score of each artifact; the first is the one that the others are compared with.
        class_names: names of labels 0, 1, 2, ...
    """
    shown = list(scores)[:_MOST_ARTIFACTS]
    sections = [
        confusion_section(short_name(name), scores[name].confusion, class_names, text=f"{name}:") for name in shown
    ]
    return html_page(
        f"Scores on {short_name(config['labeled'])}", [_scores(scores, len(shown)), *sections, settings_section(config)]
    )


def _scores(scores: Mapping[str, Score], num_shown: int) -> Section:
    rows = [[name, score.top1, score.top5, score.agreement, score.images] for name, score in scores.items()]
    more = f" Below, the classes of the first {num_shown} artifacts." if num_shown < len(scores) else ""
    note = f"Agreement is the share of images that an artifact answers as the first one does.{more}"
    header = ["artifact", "top-1 %", "top-5 %", "agreement %", "images"]
    values = {f"{index} {short_name(name)}": score.top1 for index, (name, score) in enumerate(scores.items(), 1)}
    plots = [("top-1, numbered as in the table", bars(values, x_label="%", x_range=(0, 100)))]
    return Section(heading="Scores", text=note, tables=[Table(header=header, rows=rows)], plots=plots)
