"""Train a student to answer as the teacher does: `python -m jobs.distill --config jobs/configs/X.yaml`."""

import sys
from collections.abc import Sequence

from jobs.entry import run_job
from pipeline.distillation import DistillationConfig, distill, epochs_left


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("distill", DistillationConfig, distill, argv, left=epochs_left)


if __name__ == "__main__":
    sys.exit(main())
