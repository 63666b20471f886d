"""Devices that workers compute on, a node's GPU or its CPUs, and whether the node stays. Imports no torch."""

import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker
from ray._private.thirdparty import pynvml
from ray.exceptions import RpcError

# Seconds. Ray's head answers in milliseconds, or is gone.
_ANSWER_TIMEOUT_S = 2


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPUs of a node, on which a worker computes.

    Attributes:
        node_id: id of the Ray node.
        host: name of the machine.
        gpu: index of the GPU on that machine; None for the machine's CPUs.
        uuid: UUID of the GPU, if NVIDIA's driver reports one; otherwise empty.
    """

    node_id: str
    host: str
    gpu: str | None
    uuid: str = ""

    @property
    def node(self) -> str:
        """Name of the machine, and the first digits of its node's id, because machines may share a name."""
        return f"{self.host} ({self.node_id[:8]})"

    @property
    def card(self) -> str | None:
        """Index of the GPU, and its UUID if that is known; None for CPUs."""
        return f"{self.gpu} ({self.uuid})" if self.gpu is not None and self.uuid else self.gpu

    def __str__(self) -> str:
        return f"{'the CPUs' if self.card is None else f'GPU {self.card}'} of node {self.node}"


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


def is_node_leaving() -> bool:
    """Return whether Ray was told (`ray drain-node`) that this process's node will be taken, such as a spot instance.

    Ray Train asks in the same way; Ray has no public function for it. Returns False if Ray's head does not answer.
    """
    if not ray.is_initialized():
        return False
    try:
        client: Any = worker.global_worker.gcs_client  # pyright: ignore[reportAttributeAccessIssue]
        leaving = client.get_draining_nodes(timeout=_ANSWER_TIMEOUT_S)
    except RpcError:
        return False
    return ray.get_runtime_context().get_node_id() in leaving
