"""Score artifacts on labeled images: `python -m jobs.evaluate --config FILE.yaml`."""

import sys
from collections.abc import Sequence

from jobs.entry import run_job
from pipeline.evaluation import EvaluationConfig, evaluate


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("evaluate", EvaluationConfig, evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
