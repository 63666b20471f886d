"""One job of `benchmarks.scale`, in a process of its own; a stub stands for the inversion in its workers."""

import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.status import StatusConfig, status
from pipeline.config import parse_config
from pipeline.synthesis import SynthesisConfig, synthesize
from pipeline.synthesis.plan import plan_synthesis

_GRAY = np.full((32, 32, 3), 128, np.uint8)


def set_up() -> None:
    """Let workers return images at once; called by Ray in each of them, before any other code of ours."""
    from pipeline.synthesis.actor import Inverter

    Inverter.invert_shard = invert_shard


def invert_shard(self: Any, shard_id: int, labels: Sequence[int], image_ids: Sequence[str], **_: Any) -> Any:
    """Return a shard of one gray image, again and again."""
    from pipeline.synthesis.actor import InvertedShard

    count = len(labels)
    columns: dict[str, list[Any]] = {
        "image": [_GRAY] * count,
        "label": list(labels),
        "keep_indices": [[0, 1, 2, 3]] * count,
        "image_id": list(image_ids),
        "shard_id": [shard_id] * count,
        "class_loss": [0.5] * count,
        "teacher_confidence": [0.5] * count,
        "teacher_prediction": list(labels),
    }
    return InvertedShard(shard_id, self.class_names, columns, None, [], [1] * count, 0.0, 0)


def run(config: SynthesisConfig) -> dict[str, Any]:
    """Plan, which is timed by itself, and make what is missing."""
    started = time.monotonic()
    plan_synthesis(config)
    planned = time.monotonic()
    summary = synthesize(config)
    facts = {name: summary[name] for name in ("complete", "num_images_made")}
    return {"plan_s": planned - started, "seconds": time.monotonic() - planned, **facts}


def time_status(config: SynthesisConfig) -> dict[str, Any]:
    """Look at the output as `jobs.status` does."""
    started = time.monotonic()
    found = status(StatusConfig(uri=config.output))
    return {"seconds": time.monotonic() - started, "complete": found["complete"]}


def main() -> None:
    what, file = sys.argv[1:]
    config = parse_config(SynthesisConfig, ["--config", file])
    found = {"run": run, "status": time_status}[what](config)
    # KiB on Linux.
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "peak_mb": peak_mb, "driver_s": time.process_time()}), flush=True)


if __name__ == "__main__":
    main()
