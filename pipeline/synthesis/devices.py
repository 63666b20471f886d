"""Devices that workers compute on: a node's GPU, or its CPUs. Imports no torch."""

import socket
from dataclasses import dataclass

import ray
from ray._private.thirdparty import pynvml


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPUs of a node, on which a worker computes.

    Attributes:
        node_id: of the Ray node.
        host: name of the machine.
        gpu: index of the GPU on that machine; None for its CPUs.
        uuid: of the GPU, if NVIDIA's driver reports it; else empty.
    """

    node_id: str
    host: str
    gpu: str | None
    uuid: str = ""

    def __str__(self) -> str:
        name = "the CPUs" if self.gpu is None else f"GPU {self.gpu}{f' ({self.uuid})' if self.uuid else ''}"
        return f"{name} of node {self.host} ({self.node_id[:8]})"


def this_device() -> Device:
    """Return the device of this process, a Ray worker."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU") or [None]
    return Device(context.get_node_id(), socket.gethostname(), gpus[0], "" if gpus[0] is None else _uuid(gpus[0]))


def _uuid(gpu: str) -> str:
    """Ask NVIDIA's management library, which still answers for GPUs that CUDA cannot use any more."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(int(gpu))))
    except (pynvml.NVMLError, ValueError):
        return ""
