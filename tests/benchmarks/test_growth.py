"""A node joins a cluster on which a training has fewer workers than it wants."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# Less than a minute alone; beside other clusters on two cores, many more.
@pytest.mark.timeout(1300)
def test_a_training_takes_a_worker_on_a_node_that_joins_and_reads_every_image_once_an_epoch() -> None:
    command = [sys.executable, "-m", "benchmarks.growth"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["workers"], result["equal_weights"], result["each_image_once"]) == (2, True, True)
    assert result["workers_by_epoch"] == [1, 1, 2, 2, 2, 2]
