"""Compute what an actor of the pool needs of a node, and how many actors the nodes have room for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.cluster.autoscaler import is_fixed_size, node_types
from pipeline.synthesis.config import PoolConfig
from pipeline.synthesis.devices import Device
from pipeline.synthesis.selectors import Selector, matches, ray_options


@dataclass(frozen=True)
class Needs:
    """Needs of an actor.

    Attributes:
        on_gpu: whether the actor computes on a GPU.
        actors_per_gpu: number of actors that share a GPU.
        num_gpus: share of one GPU that the actor takes; 0 without a GPU.
        num_cpus: number of CPU cores that the actor takes.
        selectors: label selectors in order of preference, one of which the node must match; empty if any node will do.
    """

    num_gpus: float
    num_cpus: int
    actors_per_gpu: int
    selectors: tuple[Selector, ...]

    @property
    def on_gpu(self) -> bool:
        return self.num_gpus > 0

    def capacity(self, resources: Mapping[str, float], labels: Mapping[str, str] | None) -> int:
        """Return how many actors fit on an idle node; one whose labels are not known is taken to be selected.

        Args:
            resources: resources of the node, by Ray's names.
            labels: labels of the node; `None` if they are not known.
        """
        chosen = labels is None or any(matches(labels, selector) for selector in self.selectors)
        if self.selectors and not chosen:
            return 0
        if self.on_gpu:
            # A GPU's remainder is lost: an actor cannot have parts of two GPUs.
            return int(resources.get("GPU", 0)) * self.actors_per_gpu
        return int(resources.get("CPU", 0) // self.num_cpus)

    def options(self, avoided: Sequence[str] = ()) -> dict[str, Any]:
        """Return Ray's options of such an actor.

        Args:
            avoided: ids of nodes that are not to be used.
        """
        # A GPU actor takes no CPU: on a small node it would wait for tasks that hold the CPUs, while those wait for it.
        resources = {"num_gpus": self.num_gpus, "num_cpus": 0} if self.on_gpu else {"num_cpus": self.num_cpus}
        return resources | ray_options(self.selectors, avoided)

    def __str__(self) -> str:
        return f"{self.num_gpus:g} GPU" if self.on_gpu else f"{self.num_cpus} CPUs (pool.cpus_per_actor)"


def needs(pool: PoolConfig) -> Needs:
    """Return what an actor needs, given the present nodes and those that the autoscaler can bring."""
    return _choose(pool)[0]


def describe_choice(pool: PoolConfig) -> str:
    """Say on what the actors compute, and why."""
    chosen, why = _choose(pool)
    shared = f", {chosen.actors_per_gpu} actors on each" if chosen.on_gpu and chosen.actors_per_gpu > 1 else ""
    return f"computing on {'GPUs' if chosen.on_gpu else 'CPUs'}{shared}: {why}"


def _choose(pool: PoolConfig) -> tuple[Needs, str]:
    selectors = (pool.label_selector, *pool.fallback) if pool.label_selector else ()
    on_gpu = Needs(round(pool.gpus_per_actor, 4), 0, pool.actors_per_gpu, selectors)
    on_cpus = Needs(0, pool.cpus_per_actor, 1, selectors)
    if pool.device != "auto":
        return (on_gpu if pool.device == "cuda" else on_cpus), f"pool.device is {pool.device}"
    there = sum(on_gpu.capacity(node["Resources"], node["Labels"]) for node in _nodes()) // pool.actors_per_gpu
    if there:
        return on_gpu, f"the cluster has {there}{_chosen(selectors)}"
    coming = node_types()
    if coming is None:
        why = "and what its autoscaler can add is unknown; set pool.device to cuda to wait for one"
        return on_cpus, f"the cluster has no GPU{_chosen(selectors)}, {why}"
    brought = int(coming.most(lambda kind: on_gpu.capacity(kind.resources, kind.labels))) // pool.actors_per_gpu
    if brought:
        unsure = selectors and any(kind.labels is None for kind in coming.types)
        unknown = " (their labels are unknown, so they may not match)" if unsure else ""
        return on_gpu, f"the cluster has none yet{_chosen(selectors)}, and its autoscaler can add {brought}{unknown}"
    more = ", and its autoscaler adds none" if coming.types else ""
    return on_cpus, f"the cluster has no GPU{_chosen(selectors)}{more}"


def _chosen(selectors: Sequence[Selector]) -> str:
    return " that pool.label_selector chooses" if selectors else ""


def seats(pool: PoolConfig, *, without: Sequence[Device] = ()) -> int:
    """Return how many actors the present nodes have room for, if nothing else runs on them.

    Args:
        pool: settings of the pool.
        without: devices that must get no actor.
    """
    actor, total = needs(pool), 0
    for node in _nodes():
        retired = [device for device in without if device.node_id == node["NodeID"]]
        room = actor.capacity(node["Resources"], node["Labels"])
        lost = len(retired) * actor.actors_per_gpu
        total += 0 if any(device.gpu is None for device in retired) else max(0, room - lost)
    return total


def reachable_seats(pool: PoolConfig, present: int) -> float:
    """Return how many actors there will be room for once the autoscaler has brought all it can.

    Args:
        pool: settings of the pool.
        present: number of actors that the present nodes have room for.
    """
    if is_fixed_size():
        return present
    coming, actor = node_types(), needs(pool)
    if coming is None:
        return float("inf")
    return max(present, coming.most(lambda kind: actor.capacity(kind.resources, kind.labels)))


def actors_per_machine(pool: PoolConfig, actors: int) -> int:
    """Return the largest number of actors that share a machine's memory; 1 if there is no machine yet."""
    actor = needs(pool)
    return max(1, min(actors, max((actor.capacity(node["Resources"], node["Labels"]) for node in _nodes()), default=1)))


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
