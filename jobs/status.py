"""`python -m jobs.status URI`: what of a synthetic dataset is done, missing and failed, and why, from its files."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.entry import run_job
from pipeline.dataset import store
from pipeline.dataset.sources import damaged_parts


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """What to look at.

    Args:
        uri: a synthetic dataset, the `output` of jobs.synthesize.
    """

    uri: str


def status(config: StatusConfig) -> dict[str, Any]:
    """Read the manifest, the footers of the parts, and the failures.

    Raises:
        DatasetError: no dataset there, or foreign files in it.
    """
    manifest = store.read_manifest(config.uri)
    progress = store.read_progress(config.uri, manifest["num_shards"], manifest["digest"])
    damaged = damaged_parts(config.uri, manifest["digest"], progress.done)
    return {
        "complete": progress.complete and not damaged,
        "output": config.uri,
        "digest": manifest["digest"],
        "num_shards": manifest["num_shards"],
        "num_done": len(progress.done),
        "failed": list(progress.failed.values()),
        "missing": progress.missing,
        "damaged": [{"shard_id": shard_id, "reason": reason} for shard_id, reason in damaged.items()],
        "num_images": manifest["num_images"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the URI may stand alone, without `--uri`."""
    flags = list(sys.argv[1:] if argv is None else argv)
    if flags and not flags[0].startswith("-"):
        flags.insert(0, "--uri")
    return run_job("status", StatusConfig, status, flags)


if __name__ == "__main__":
    sys.exit(main())
