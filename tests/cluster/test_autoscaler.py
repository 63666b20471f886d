"""Nodes that an autoscaler can bring, from each of the places where that may stand."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import _raylet
from ray.core.generated.autoscaler_pb2 import ClusterConfig  # pyright: ignore[reportAttributeAccessIssue]

from pipeline.cluster.autoscaler import NodeType, NodeTypes, _node_types_of, from_launcher, is_fixed_size
from tests.conftest import starting_cluster

ROOT = Path(__file__).parents[2]
# In a process that joins a cluster which another one started, and before that has started one of its own.
ASK = """
import os, ray
from pipeline.cluster import connect, is_fixed_size
os.environ["RAY_ADDRESS"] = "local"
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
own = is_fixed_size()
ray.shutdown()
os.environ["RAY_ADDRESS"] = os.environ["JOINED"]
connect()
print("fixed:", own, is_fixed_size())
"""


@pytest.fixture
def reported(ray_session: None) -> Iterator[ClusterConfig]:
    """Report to the cluster of the tests as a hosted autoscaler might."""
    raylet: Any = _raylet
    place = raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode()
    key = raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode()
    gcs = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    config = ClusterConfig()
    config.node_group_configs.add(name="gpu", resources={"GPU": 8, "CPU": 96}, max_count=-1)
    config.node_group_configs.add(name="cpu", resources={"CPU": 16}, max_count=4)
    config.node_group_configs.add(name="none", resources={"GPU": 1}, max_count=0)
    gcs.internal_kv_put(key, config.SerializeToString(), True, place)
    yield config
    gcs.internal_kv_del(key, False, place)


def answers() -> list[bool]:
    """Return what the driver, a task and an actor of the cluster of the tests are told."""

    class Asking:
        def ask(self) -> bool:
            return is_fixed_size()

    actor_class: Any = ray.remote(num_cpus=0)(Asking)
    actor = actor_class.remote()
    try:
        return [is_fixed_size(), ray.get(ray.remote(is_fixed_size).remote()), ray.get(actor.ask.remote())]
    finally:
        ray.kill(actor)


def test_a_cluster_that_ray_init_started_is_fixed_for_all_that_run_on_it(ray_session: None) -> None:
    assert answers() == [True] * 3


def test_nodes_may_join_a_cluster_that_ray_start_started_whoever_asks(open_cluster: None) -> None:
    assert answers() == [False] * 3


def test_a_process_that_started_a_cluster_before_is_told_of_the_one_it_joined(
    open_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    joined = ray.get_runtime_context().gcs_address
    env = {**os.environ, "JOINED": joined, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ASK]
    with starting_cluster(tmp_path_factory):
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert "fixed: True False" in done.stdout, done.stdout + done.stderr


def test_what_a_hosted_autoscaler_reports_is_believed(reported: ClusterConfig) -> None:
    found = _node_types_of.__wrapped__(ray.get_runtime_context().gcs_address)
    # Ray reports no labels there.
    types = [NodeType({"GPU": 8, "CPU": 96}, 10_000, labels=None), NodeType({"CPU": 16}, 4, labels=None)]
    assert found == NodeTypes(types)


def test_node_types_are_read_as_the_launcher_reads_them() -> None:
    spot = {"market": "spot"}
    gpu = {"resources": {"GPU": 4}, "labels": spot, "max_workers": 9}
    types = {"head": {"resources": {"CPU": 0}}, "gpu": gpu, "cpu": {"resources": {"CPU": 8}}, "old": {"max_workers": 0}}
    config = {"max_workers": 6, "head_node_type": "head", "available_node_types": types}
    assert from_launcher(config) == NodeTypes([NodeType({"GPU": 4}, 6, spot), NodeType({"CPU": 8}, 6)], max_nodes=6)


def test_nodes_of_all_types_together_stay_within_the_launchers_total() -> None:
    types = [NodeType({"GPU": 1}, 8), NodeType({"GPU": 4}, 2), NodeType({"CPU": 8}, 8)]
    found = NodeTypes(types, max_nodes=8)
    assert found.most(lambda kind: kind.resources.get("GPU", 0)) == 2 * 4 + 6 * 1
    assert found.most(lambda kind: kind.resources.get("CPU", 0)) == 8 * 8
    assert NodeTypes(types).most(lambda kind: kind.resources.get("GPU", 0)) == 2 * 4 + 8 * 1
    assert NodeTypes().most(lambda kind: 1) == 0
