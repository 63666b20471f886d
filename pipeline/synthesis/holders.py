"""Keep retired GPUs from being scheduled. Imports no torch, because each holder is a process."""

from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.synthesis.devices import Device

# Ray starts so small an actor within seconds, once the actors of the last pass have ended.
_HOLD_TIMEOUT_S = 30.0


def hold_gpus(devices: Sequence[Device]) -> dict[Device, ActorHandle]:
    """Occupy GPUs so that Ray does not give them to anyone else while the returned actors are kept.

    A GPU of a node cannot be chosen in Ray, so GPUs are taken one after another, and the others are given back.
    """
    actor_class: Any = ray.remote(num_cpus=0, num_gpus=1)(_Holder)
    held: dict[Device, ActorHandle] = {}
    for node_id in sorted({device.node_id for device in devices if device.gpu is not None}):
        wanted = {device.gpu: device for device in devices if device.node_id == node_id}
        here = NodeAffinitySchedulingStrategy(node_id, soft=False)
        spare: list[ActorHandle] = []
        while wanted:
            holder = actor_class.options(scheduling_strategy=here).remote()
            try:
                device = wanted.pop(ray.get(holder.gpu.remote(), timeout=_HOLD_TIMEOUT_S), None)
            except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
                break  # others have taken it, or the node is lost
            if device is None:
                spare.append(holder)
            else:
                held[device] = holder
    return held


class _Holder:
    """An actor that only occupies a GPU."""

    def gpu(self) -> str:
        return ray.get_runtime_context().get_accelerator_ids()["GPU"][0]
