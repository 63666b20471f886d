"""Count the errors of devices, and retire those that keep failing. Imports no torch."""

from pipeline.synthesis.devices import Device

# A device is retired after this many errors, of each actor that shares it, without a finished shard between them.
MAX_DEVICE_ERRORS = 2


class DeviceErrors:
    """Errors of the devices of a run.

    Args:
        actors_per_gpu: number of actors that share a GPU, and fail together with it.

    Attributes:
        retired: device that gets no more work → why.
    """

    def __init__(self, actors_per_gpu: int) -> None:
        self.retired: dict[Device, str] = {}
        self._actors_per_gpu = actors_per_gpu
        self._counts: dict[Device, int] = {}
        self._seen: set[Device] = set()
        # Node → why none of its devices gets any more work, not even one that is first seen later.
        self._retired_nodes: dict[str, str] = {}

    def see(self, device: Device) -> None:
        """Note that a worker is on a device, and retire it if its node is."""
        self._seen.add(device)
        if device.node in self._retired_nodes:
            self.retired.setdefault(device, self._retired_nodes[device.node])

    def count(self, device: Device, reason: str) -> None:
        """Count an error of a device, and retire it if it has too many."""
        self._counts[device] = self._counts.get(device, 0) + 1
        together = 1 if device.gpu is None else self._actors_per_gpu
        if self._counts[device] >= MAX_DEVICE_ERRORS * together:
            self.retired.setdefault(device, reason)

    def clear(self, device: Device) -> None:
        """Forget the errors of a device, because it did a shard."""
        self._counts.pop(device, None)

    def retire_node(self, node: str, reason: str) -> None:
        """Retire all devices of a node, including those that get a worker later.

        Args:
            node: name of the node, as `Device.node` gives it.
            reason: why it is retired, in one line.
        """
        self._retired_nodes.setdefault(node, reason)
        for device in list(self._seen):
            self.see(device)
