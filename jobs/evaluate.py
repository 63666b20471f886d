"""Score artifacts on labeled images: `python -m jobs.evaluate --config FILE.yaml`."""

import sys
from collections.abc import Sequence
from typing import Any

from jobs.ending import next_line, table_lines
from jobs.entry import run_job
from pipeline.evaluation import EvaluationConfig, evaluate
from pipeline.report.page import Table


def _ending(config: EvaluationConfig, result: dict[str, Any]) -> list[str]:
    """Return the scores, and how to see more of them."""
    rows = [[row["artifact"], row["top1"], row["top5"], row["images"]] for row in result["artifacts"]]
    lines = table_lines(Table(header=["artifact", "top-1 %", "top-5 %", "images"], rows=rows))
    if config.output is not None:
        return lines
    return [*lines, *next_line("see which classes are taken for which", "run it again with --output FOLDER")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    return run_job("evaluate", EvaluationConfig, evaluate, argv, ending=_ending)


if __name__ == "__main__":
    sys.exit(main())
