"""Merge the parts of a synthetic dataset into larger files: `python -m jobs.compact --images URI --output URI`."""

import sys
from collections.abc import Sequence

from jobs.entry import run_job
from pipeline.compaction import CompactionConfig, compact, files_left


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    return run_job("compact", CompactionConfig, compact, argv, left=files_left)


if __name__ == "__main__":
    sys.exit(main())
