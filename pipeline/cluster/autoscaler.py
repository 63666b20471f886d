"""Find out whether nodes can still join the cluster, and which ones its autoscaler can bring."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import yaml
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._private.state import state
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Seconds to wait for the head's answer: it starts a process for the question, unless the driver runs there.
_ANSWER_TIMEOUT_S = 60.0
_HEAD = "node:__internal_head__"
# Ray's default where the launcher's file does not state it.
_MAX_WORKERS = 2
_UNLIMITED = 10_000


@dataclass(frozen=True)
class NodeType:
    """Nodes of one kind that an autoscaler can bring.

    Attributes:
        resources: resources of one such node, by Ray's names.
        max_count: largest number of such nodes.
        labels: labels of each node, as far as they are known before it starts; `None` if none is known.
    """

    resources: Mapping[str, float]
    max_count: int
    labels: Mapping[str, str] | None = field(default_factory=dict)


@dataclass(frozen=True)
class NodeTypes:
    """The nodes that an autoscaler can bring.

    Attributes:
        types: types of nodes; empty without an autoscaler.
        max_nodes: largest number of nodes of all types together.
    """

    types: list[NodeType] = field(default_factory=list)
    max_nodes: int = _UNLIMITED

    def most(self, amount: Callable[[NodeType], float]) -> float:
        """Return the largest sum of an amount over nodes that can be there together.

        Args:
            amount: function that returns the amount of one node of a type.
        """
        total, left = 0.0, self.max_nodes
        for each, count in sorted(((amount(kind), kind.max_count) for kind in self.types), reverse=True):
            total += each * min(count, left)
            left -= min(count, left)
        return total


def is_fixed_size() -> bool:
    """Return whether the joined cluster was started by `ray.init()`, and not by `ray start`.

    Ray brings no nodes to such a cluster, and machines that a user joins by hand must be there before the job. So a
    pool or a number of workers that does not fit is refused at once; on any other cluster, the job waits for nodes. The
    head records how it was started, so every process that has joined gets the same answer: the driver, a submitted job,
    an actor, or a process that joined a cluster which another process started. It takes one request to the head.
    """
    metadata = _internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    return metadata is not None and bool(json.loads(metadata).get("ray_init_cluster"))


def node_types() -> NodeTypes | None:
    """Return what nodes the autoscaler of the joined cluster can bring: no types without one; None if it is not known.

    Ray has a place where autoscalers report what they can bring. Hosted ones do so, and Ray's own does not, but the
    file that it was started with is on the head. KubeRay's runs in a container of its own, and cannot be asked.
    """
    return _node_types_of(ray.get_runtime_context().gcs_address)


@cache
def _node_types_of(gcs_address: str) -> NodeTypes | None:
    reported = state.get_cluster_config()
    if reported is not None and reported.node_group_configs:
        types = [
            # The report has no labels, but the nodes may have some, by which Ray chooses them.
            NodeType(dict(group.resources), _UNLIMITED if group.max_count == -1 else group.max_count, labels=None)
            for group in reported.node_group_configs
            if group.max_count
        ]
        return NodeTypes(types)
    port = gcs_address.rpartition(":")[2]
    head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]), None)
    if head is None:
        return None
    if head == ray.get_runtime_context().get_node_id():
        return read_on_head(port)
    # Ray's type hints lack this strategy.
    there: Any = NodeAffinitySchedulingStrategy(head, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(read_on_head)
    try:
        return ray.get(task.remote(port), timeout=_ANSWER_TIMEOUT_S)
    except ray.exceptions.RayError:
        return None


def read_on_head(port: str) -> NodeTypes | None:
    """Find the node types from the autoscaler process on this machine, the head; see `node_types`.

    Args:
        port: port of the head's GCS, which tells this autoscaler apart from those of other clusters on the machine.
    """
    import psutil  # type: ignore[reportMissingModuleSource]  # Ray brings it, and it is found once Ray is imported

    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if any(part.endswith("/monitor.py") for part in command):
            arguments = dict(part.split("=", 1) for part in command if "=" in part)
            if arguments.get("--gcs-address", "").endswith(f":{port}"):
                file = arguments.get("--autoscaling-config")
                if file is None:
                    return NodeTypes()
                return _read(Path(process.info["cwd"] or "/") / Path(file).expanduser())
    return None


def _read(file: Path) -> NodeTypes | None:
    try:
        return from_launcher(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError):
        return None


def from_launcher(config: Mapping[str, Any]) -> NodeTypes:
    """Return the node types of a `cluster.yaml`, as Ray's launcher and its autoscaler read it."""
    limit = config.get("max_workers", _MAX_WORKERS)
    return NodeTypes(list(_types_from_launcher(config, limit)), limit)


def _types_from_launcher(config: Mapping[str, Any], limit: int) -> Iterator[NodeType]:
    head = config.get("head_node_type")
    for name, node_type in config.get("available_node_types", {}).items():
        count = min(limit, node_type.get("max_workers", 0 if name == head else limit))
        if count > 0:
            yield NodeType(node_type.get("resources", {}), count, node_type.get("labels", {}))
