"""Merge the parts of a synthetic dataset into larger files: `python -m jobs.compact --images URI --output URI`."""

import sys
from collections.abc import Sequence
from typing import Any

from jobs.ending import command, next_line
from jobs.entry import run_job
from pipeline.compaction import CompactionConfig, compact, files_left
from pipeline.dataset.listing import counted


def _ending(config: CompactionConfig, summary: dict[str, Any]) -> list[str]:
    """Return lines that say how much was merged, and how to check it."""
    size = f"{summary['bytes'] / 10**6:.3g} MB"
    images, parts, files = (counted(range(summary[f"num_{noun}s"]), noun) for noun in ("image", "part", "file"))
    line = f"compact: {images} of {parts} are in {files}, {size}: {config.output}"
    return [line, *next_line("check it", command("status", uri=config.output))]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    return run_job("compact", CompactionConfig, compact, argv, left=files_left, ending=_ending)


if __name__ == "__main__":
    sys.exit(main())
