"""Invert a teacher into a synthetic dataset: `python -m jobs.synthesize --config jobs/configs/X.yaml`."""

import sys
from collections.abc import Sequence
from typing import Any

from jobs.ending import beside, command, next_line
from jobs.entry import run_job
from pipeline.synthesis import SynthesisConfig, shards_left, synthesize


def _ending(config: SynthesisConfig, summary: dict[str, Any]) -> list[str]:
    """Return lines that say how to go on from a complete dataset."""
    if not summary.get("complete"):
        return []
    asked = command("calibrate", config.teacher, images=config.output, output=beside(config.output, "int8"))
    return next_line("quantize the teacher on it", asked)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; `--dry-run` alone is short for `--dry_run true`."""
    flags = [("--dry_run=true" if flag == "--dry-run" else flag) for flag in (sys.argv[1:] if argv is None else argv)]
    return run_job("synthesize", SynthesisConfig, synthesize, flags, left=shards_left, ending=_ending)


if __name__ == "__main__":
    sys.exit(main())
