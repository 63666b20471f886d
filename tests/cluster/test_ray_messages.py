"""Messages of Ray on the driver that users do not see."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray._private.utils import publish_error_to_driver
from ray._private.worker import global_worker

from pipeline.cluster import connect

FAILED = "Task MapWorker(MapBatches(GuardedWriter)).submit failed. There are infinite retries remaining, so the task "
FAILED += "will be retried. Error: The actor is dead because it was killed by `ray.kill`."
LOST = FAILED.replace("it was killed by `ray.kill`", "its node has died")
START = """
import ray
from pipeline.cluster import connect
connect()
ray.shutdown()
"""


@pytest.mark.usefixtures("ray_session")
def test_the_end_of_a_pool_is_not_told_and_the_loss_of_a_node_is(capsys: pytest.CaptureFixture[str]) -> None:
    connect()
    connect()
    job, printed = ray.get_runtime_context().get_job_id(), ""
    gcs = global_worker.gcs_client  # type: ignore[reportAttributeAccessIssue]
    for message in (FAILED, LOST):
        publish_error_to_driver("task", message, gcs, ray.JobID.from_hex(job))
    ends = time.monotonic() + 20
    while "its node has died" not in printed and time.monotonic() < ends:
        time.sleep(0.1)
        printed += capsys.readouterr().out
    assert "its node has died" in printed
    assert "ray.kill" not in printed


def test_a_job_that_starts_a_cluster_says_nothing_of_tokens(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    # Where Ray writes the token.
    environment |= {"HOME": str(tmp_path), "RAY_ADDRESS": "local"}
    started = subprocess.run(
        [sys.executable, "-c", START],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
