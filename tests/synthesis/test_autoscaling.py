"""A job on a cluster that Ray's autoscaler enlarges and empties; its nodes are processes on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[reportMissingModuleSource]  # Ray brings it, and it is found once Ray is imported
import pytest
from ray.autoscaler.v2.schema import ClusterStatus
from ray.autoscaler.v2.sdk import get_cluster_status

from tests.conftest import forking
from tests.synthesis.conftest import ROOT, parts_of, write_config

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
NUM_GPUS = 3


def cluster_config(address: str) -> dict[str, object]:
    """A head without CPUs, and up to three nodes with a GPU each, of which each stays for two seconds without work."""
    store = {"object_store_memory": 100 * 2**20}
    return {
        # Ray fills this in for the clouds that it knows.
        **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands", "initialization_commands")},
        **{"auth": {}, "file_mounts": {}, "cluster_synced_files": []},
        "cluster_name": "fake",
        "max_workers": NUM_GPUS,
        "upscaling_speed": 10,
        "idle_timeout_minutes": 2 / 60,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0, **store}, "max_workers": 0, "node_config": {}},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, **store},
                "labels": {"market": "spot"},
                "max_workers": NUM_GPUS,
                "node_config": {},
            },
        },
        "head_node_type": "ray.head.default",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, and end it and all that it started."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=os.environ | env, stdout=stream, stderr=stream, cwd=ROOT)
        try:
            yield process
        finally:
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                started = [parent, *parent.children(recursive=True)]
                process.terminate()
                _, alive = psutil.wait_procs(started, timeout=5)
                for left in alive:
                    left.kill()
                process.wait()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of the head of such a cluster, which has no GPU yet."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    (tmp_path / "cluster.json").write_text(json.dumps(cluster_config(address)))
    env = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_ADDRESS": "",
    }
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={port}", f"--ray-client-server-port={free_port()}"]
    command += ["--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", f"--object-store-memory={100 * 2**20}"]
    command += [f"--autoscaling-config={tmp_path / 'cluster.json'}"]
    with running(command, forking(os.environ | env), tmp_path / "head.log") as head:
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in (tmp_path / "head.log").read_text():
            assert head.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield address


def num_gpu_nodes(status: ClusterStatus) -> int:
    """GPU nodes that the autoscaler has asked for, whether they are there already or not."""
    nodes = [*status.active_nodes, *status.idle_nodes, *status.pending_nodes]
    launches = sum(request.count for request in status.pending_launches if request.ray_node_type_name == "gpu")
    return launches + sum(node.ray_node_type_name == "gpu" for node in nodes)


def wait_for_gpu_nodes(address: str, wanted: int) -> None:
    deadline = time.monotonic() + 180
    while (count := num_gpu_nodes(get_cluster_status(address))) != wanted:
        assert time.monotonic() < deadline, count
        time.sleep(0.1)


# A minute, on a machine that has nothing else to do.
@pytest.mark.timeout(900)
def test_gpu_nodes_come_all_at_once_and_go_when_the_job_is_done(
    address: str, tiny_folder: Path, tmp_path: Path
) -> None:
    pool = {"max_size": NUM_GPUS, "label_selector": {"market": "spot"}, "fallback": [{}]}
    file = write_config(tmp_path, tiny_folder, str(tmp_path / "out"), pool=pool)
    command = [sys.executable, "-m", "jobs.synthesize", "--config", str(file)]
    with running(command, {"RAY_ADDRESS": address}, tmp_path / "job.log") as job:
        # With one node after the other, the first would finish a shard long before the last is asked for.
        wait_for_gpu_nodes(address, NUM_GPUS)
        assert not (tmp_path / "out" / "data").exists()
        assert job.wait(300) == 0, (tmp_path / "job.log").read_text()
    printed = (tmp_path / "job.log").read_text()
    why = "the cluster has none yet that pool.label_selector chooses, and its autoscaler can add 3"
    assert printed.splitlines()[0] == f"plan: computing on GPUs: {why}"
    assert len(parts_of(tmp_path / "out")) == 6
    wait_for_gpu_nodes(address, 0)
