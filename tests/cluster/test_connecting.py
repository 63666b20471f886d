"""Clusters that are not there, do not answer, or are of another kind: one line, within seconds."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

from pipeline.cluster import check_answer
from pipeline.errors import ClusterError

ROOT = Path(__file__).parents[2]
# In a process that has joined no cluster; one for all addresses, for it takes seconds to import Ray.
CHECK = """
import os, sys
from pipeline.cluster import check_cluster
from pipeline.errors import ClusterError
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    try:
        check_cluster()
        print("joins")
    except ClusterError as error:
        print(error)
"""


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_addresses_of_nothing_are_reported_at_once_and_in_a_line(tmp_path: Path) -> None:
    port = closed_port()
    (tmp_path / "ray").mkdir()
    # What a head that was killed leaves behind.
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    said = {
        f"127.0.0.1:{port}": "nothing answers at the Ray cluster",
        "ray://127.0.0.1:10001": "is for Ray Client: jobs run on the cluster itself: submit them with `ray job submit`",
        "http://127.0.0.1:8265": "is not a cluster's address: give HOST:PORT of its head",
        "nonsense": "RAY_ADDRESS is 'nonsense', which is not of the form HOST:PORT",
        "host:port": "RAY_ADDRESS is 'host:port', which is not of the form HOST:PORT",
        "": "(the address is in Ray's file ray_current_cluster on this machine): ConnectionRefusedError",
        "local": "joins",
    }
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *said],
        env={**os.environ, "RAY_TMPDIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(said), done.stdout + done.stderr
    assert [text for text, line in zip(said.values(), lines, strict=True) if text not in line] == [], done.stdout
    # Ray waits from one to fourteen minutes for each of them.
    assert time.monotonic() - started < 60


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_of_another_version_is_reported_with_both_versions() -> None:
    address = ray.get_runtime_context().gcs_address
    check_answer(address, "the cluster")
    gcs = GcsClient(address=address)
    versions = gcs.internal_kv_get(b"CLUSTER_METADATA", namespace=KV_NAMESPACE_CLUSTER)
    assert versions is not None
    other = json.dumps({**json.loads(versions), "ray_version": "2.1.0"}).encode()
    gcs.internal_kv_put(b"CLUSTER_METADATA", other, True, namespace=KV_NAMESPACE_CLUSTER)
    try:
        with pytest.raises(ClusterError, match=rf"cannot join the cluster: .*Ray: 2\.1\.0 .*Ray: {ray.__version__}"):
            check_answer(address, "the cluster")
    finally:
        gcs.internal_kv_put(b"CLUSTER_METADATA", versions, True, namespace=KV_NAMESPACE_CLUSTER)


def test_a_server_of_another_kind_does_not_keep_a_job_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.connection._ANSWER_TIMEOUT_S", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(ClusterError, match="does not answer, though something listens there"):
            check_answer(f"127.0.0.1:{server.getsockname()[1]}", "the cluster")
