"""Measure what planning, running, resuming and looking at a large synthesis cost the driver and the store.

    python -m benchmarks.scale --shards 100000

A stub stands for the inversion; everything else is real: jobs on a local Ray cluster, and an output on an S3 server on
loopback, in this process, which counts requests. Each job is a process of its own with its own memory; the base of
memory is a job of 100 shards. Prints one JSON line; docs/scale.md says what follows from it. Needs the extra `test`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import boto3
import ray
import torch
import yaml

from benchmarks.chaos_dataset import write_teacher
from benchmarks.circumstances import circumstances
from benchmarks.loopback import LoopbackStore, Start
from benchmarks.rounds import short

_BUCKET = "scale"
_BASE_SHARDS = 100
_IMAGES_PER_SHARD = 10
_ROOT = Path(__file__).parents[1]


class CountingStore(LoopbackStore):
    """An S3 server in this process.

    Attributes:
        requests: method → number of requests since they were taken last.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        super().__init__(_BUCKET)
        os.environ.update(self.env)

    def answer(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        self.requests[environ["REQUEST_METHOD"]] += 1
        return super().answer(environ, start_response)

    def taken(self) -> dict[str, int]:
        """Return the requests by method, and begin to count anew."""
        counted, self.requests = self.requests, Counter()
        return dict(counted)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON line, as plain data."""
    store = CountingStore()
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        write_teacher(Path(folder, "teacher"))
        base = _job("run", _write_config(Path(folder), _BASE_SHARDS, options.workers))
        store.taken()
        config = _write_config(Path(folder), options.shards, options.workers)
        run = _job("run", config)
        made = store.taken()
        _delete_part(options.shards)
        store.taken()
        resume = _job("run", config)
        resumed = store.taken()
        status = _job("status", config)
        looked = store.taken()
    return {
        "shards": options.shards,
        "plan_s": short(run["plan_s"]),
        "run_s": short(run["seconds"]),
        "resume_s": short(resume["seconds"]),
        "status_s": short(status["seconds"]),
        "driver_mb_over_base": round(max(run["peak_mb"], resume["peak_mb"]) - base["peak_mb"]),
        "status_mb_over_base": round(status["peak_mb"] - base["peak_mb"]),
        "requests_per_shard": short(sum(made.values()) / options.shards),
        "requests_to_resume": resumed,
        "requests_of_status": looked,
        "ray_ms_per_shard": short(1000 * run["seconds"] / options.shards),
        "driver_ms_per_shard": short(1000 * (run["driver_s"] - base["driver_s"]) / options.shards),
        "complete": run["complete"] and resume["complete"] and status["complete"],
        "made_on_resume": resume["num_images_made"],
        "workers": options.workers,
        "ray": ray.__version__,
        **circumstances("benchmarks.scale", torch.device("cpu")),
    }


def _output(shards: int) -> str:
    return f"s3://{_BUCKET}/{shards}"


def _write_config(folder: Path, shards: int, workers: int) -> Path:
    values = {
        "teacher": {"name": f"local-dir:{folder / 'teacher'}"},
        "output": _output(shards),
        "images_per_class": shards,
        "shard_size": _IMAGES_PER_SHARD,
        "inversion": {"iterations": 1, "stop_steps": [], "stop_fractions": []},
        "pool": {"min_size": 1, "max_size": workers},
    }
    file = folder / f"{shards}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def _job(what: str, config: Path) -> dict[str, Any]:
    """Run `benchmarks.scale_job` in a process on a cluster of its own, and return what it printed."""
    hook = {"runtime_env": {"worker_process_setup_hook": "benchmarks.scale_job.set_up"}}
    own = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(hook)}
    env = {**os.environ, "PYTHONPATH": str(_ROOT), **own}
    command = [sys.executable, "-m", "benchmarks.scale_job", what, str(config)]
    done = subprocess.run(command, env=env, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _delete_part(shards: int) -> None:
    bucket: Any = boto3.resource("s3").Bucket(_BUCKET)  # pyright: ignore[reportAttributeAccessIssue]
    next(iter(bucket.objects.filter(Prefix=f"{shards}/data/").limit(1))).delete()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000, help="of ten images each")
    parser.add_argument("--workers", type=int, default=1, help="actors of the pool")
    print(json.dumps(measure(parser.parse_args(argv))), flush=True)


if __name__ == "__main__":
    main()
