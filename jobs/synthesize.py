"""Invert a teacher into a synthetic dataset: `python -m jobs.synthesize --config jobs/configs/X.yaml`."""

import sys
from collections.abc import Sequence

from jobs.entry import run_job
from pipeline.synthesis import SynthesisConfig, shards_left, synthesize


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; `--dry-run` alone is short for `--dry_run true`."""
    flags = [("--dry_run=true" if flag == "--dry-run" else flag) for flag in (sys.argv[1:] if argv is None else argv)]
    return run_job("synthesize", SynthesisConfig, synthesize, flags, left=shards_left)


if __name__ == "__main__":
    sys.exit(main())
