"""The head's own process is killed with SIGKILL while a synthesis runs on a real cluster."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_head import is_right
from tests.conftest import forking

ROOT = Path(__file__).parents[2]
needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="needs `redis-server` on the PATH, as of Debian's package of that name"
)
# A minute alone; beside other clusters on two cores, many more.
pytestmark = pytest.mark.timeout(1300)


# What it printed when it was right.
MEASURED = [json.loads(line) for line in (ROOT / "benchmarks/results/chaos-head.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("result", MEASURED, ids=[row["storage"] for row in MEASURED])
def test_a_job_that_says_nothing_of_its_head_or_anything_else_is_not_right(result: dict[str, Any]) -> None:
    assert is_right(result)
    assert not is_right({**result, "said": []})
    assert not is_right({**result, "said": result["said"][1:]})
    assert not is_right({**result, "said": [*result["said"], "warning: the disk is slow"]})
    assert not is_right({**result, "exit_codes": [1]})


def killed(*flags: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.chaos_head", *flags]
    env = forking(os.environ)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["identical"], result["lost"], result["doubled"], result["unexpected"]) == (True, 0, 0, [])
    return result


def test_a_job_that_lost_its_head_ends_with_one_line_and_the_rest_is_made_on_another_cluster() -> None:
    # Ray waits for a minute unless it is told otherwise, as here.
    result = killed("--storage", "memory", "--give-up-s", "15")
    assert result["exit_codes"] == [1, 0]
    assert 0 < result["parts_then"] < result["shards"]
    assert result["ended_s"] < 60
    (line,) = result["said"]
    assert line.startswith("error: the head of the Ray cluster, ")
    assert line.endswith("Ray ends this job; what is done is kept, run it again for the rest")


@pytest.mark.parametrize("storage", ["rocksdb", pytest.param("redis", marks=needs_redis)])
def test_a_job_goes_on_when_a_head_that_kept_its_state_is_back(storage: str) -> None:
    result = killed("--storage", storage)
    assert result["exit_codes"] == [0]
    gone, back = result["said"]
    assert gone.startswith("error: the head of the Ray cluster, ")
    assert back.startswith("warning: the head of the Ray cluster, ")
    assert back.endswith("answers again")
