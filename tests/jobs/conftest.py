"""Jobs in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import ray


def start_job(job: str, *flags: str) -> subprocess.Popen[str]:
    """A job as a user starts it, on the cluster of the tests."""
    return subprocess.Popen(
        [sys.executable, "-m", f"jobs.{job}", *flags],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
