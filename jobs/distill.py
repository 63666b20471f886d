"""Train a student to answer as the teacher does: `python -m jobs.distill --config jobs/configs/X.yaml`."""

import sys
from collections.abc import Sequence
from typing import Any

from jobs.ending import next_line, score_line, table_lines
from jobs.entry import run_job
from pipeline import storage
from pipeline.distillation import DistillationConfig, distill, epochs_left
from pipeline.distillation.report import short_table
from pipeline.models.dinov2 import DINOV2, DINOV2_SWIGLU
from pipeline.models.folders import read_model_config
from pipeline.report.writing import from_here


def _ending(config: DistillationConfig, result: dict[str, Any]) -> list[str]:
    """Return how often the students are right, and how to load the best one, or to score it where timm cannot."""
    best, last = (from_here(result[name]) for name in ("student", "last"))
    lines = table_lines(short_table(result | {"student": best, "last": last}))
    if not storage.is_local(best):
        return [*lines, *score_line(config, best)]
    # The names of its own models are known to timm once this project is imported.
    ours = read_model_config(best).get("architecture") in (DINOV2, DINOV2_SWIGLU)
    loaded = f'timm.create_model("local-dir:{from_here(storage.absolute(best))}", pretrained=True)'
    return [*lines, *next_line("load it in Python", f"import timm{', pipeline.models' if ours else ''}; {loaded}")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    return run_job("distill", DistillationConfig, distill, argv, left=epochs_left, ending=_ending)


if __name__ == "__main__":
    sys.exit(main())
