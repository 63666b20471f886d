"""Resources of the actor pool."""

from collections.abc import Sequence
from typing import Any

import ray
import ray.data

from pipeline.errors import ConfigError
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.devices import Device

_NODE_ID = "ray.io/node-id"


def pool_options(
    config: SynthesisConfig, num_shards: int, *, fixed_size: bool, without: Sequence[Device] = ()
) -> dict[str, Any]:
    """Return Ray's arguments for the pool: `compute`, and the resources of each actor. The cluster must be joined.

    Args:
        config: of the dataset.
        num_shards: number of shards to do.
        fixed_size: whether no more nodes can join the cluster.
        without: devices that must get no actor; the GPUs among them must be held, see `holders`.

    Raises:
        ConfigError: a cluster of fixed size is too small for the pool.
    """
    pool, resources = config.pool, _resources(config)
    max_size = min(pool.max_size, num_shards)
    min_size = min(pool.min_size, max_size)
    room = seats(config, without=without)
    if without:
        min_size = max(1, min(min_size, room))
    if fixed_size and room < min_size:
        needed = "1 GPU" if "num_gpus" in resources else f"{pool.cpus_per_actor} CPUs (pool.cpus_per_actor)"
        raise ConfigError(f"pool.min_size {min_size} with {needed} per actor: this machine has room for {room}")
    compute = ray.data.ActorPoolStrategy(
        min_size=min_size,
        max_size=max_size,
        # With 1 the pool would never grow.
        max_tasks_in_flight_per_actor=2,
    )
    nodes = sorted({device.node_id for device in without if device.gpu is None})
    elsewhere = {"label_selector": {_NODE_ID: f"!in({', '.join(nodes)})"}} if nodes else {}
    return {"compute": compute, **resources, **elsewhere}


def _resources(config: SynthesisConfig) -> dict[str, int]:
    """Return the resources of each actor."""
    pool = config.pool
    use_gpu = pool.device == "cuda" or (pool.device == "auto" and any(node.get("GPU", 0) >= 1 for node in _nodes()))
    # A GPU actor takes no CPU: on a small node it would wait for tasks that hold the CPUs, while those wait for it.
    return {"num_gpus": 1, "num_cpus": 0} if use_gpu else {"num_cpus": pool.cpus_per_actor}


def seats(config: SynthesisConfig, *, without: Sequence[Device] = ()) -> int:
    """Return how many actors the present nodes have room for, if nothing else runs on them."""
    resources, total = _resources(config), 0
    for node in ray.nodes():
        if node["Alive"]:
            retired = [device for device in without if device.node_id == node["NodeID"]]
            room = _room(node["Resources"], resources)
            total += 0 if any(device.gpu is None for device in retired) else max(0, room - len(retired))
    return total


def _room(node: dict[str, float], resources: dict[str, int]) -> int:
    """Return how many actors fit on a node."""
    names = {"num_gpus": "GPU", "num_cpus": "CPU"}
    return min(int(node.get(names[name], 0) // amount) for name, amount in resources.items() if amount)


def actors_per_machine(resources: dict[str, int], actors: int) -> int:
    """Return the largest number of actors that share a machine's memory; 1 if there is no machine yet."""
    return max(1, min(actors, max((_room(node, resources) for node in _nodes()), default=1)))


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each node in the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
