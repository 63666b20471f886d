"""Track which workers of a pass are busy, and how long idle workers wait for them. Imports no torch."""

import time
from collections.abc import Container
from dataclasses import dataclass, field

from pipeline.synthesis.devices import Device
from pipeline.synthesis.records import Running

# Ray Data gives each worker the turn that it has and the next one.
TURNS_PER_WORKER = 2
# Seconds without work after which a pass may end: longer than a worker takes between two shards.
_BETWEEN_SHARDS_S = 3.0
# Seconds to wait for another machine where the cluster can grow.
_GROWING_S = 60.0
# Seconds to wait for the process that Ray starts in the place of one that ended itself.
_RESTART_S = 120.0


@dataclass
class AtWork:
    """Workers of a pass.

    Attributes:
        running: shard id → the process that inverts or writes it.
        loading: worker → its device, for workers that load the teacher.
        leaving: worker → its device and when it left, for workers whose process ended itself and is started again.
    """

    running: dict[int, Running] = field(default_factory=dict)
    loading: dict[str, Device] = field(default_factory=dict)
    leaving: dict[str, tuple[Device, float]] = field(default_factory=dict)

    def leave(self, worker: str, device: Device) -> None:
        """Note that a worker's process ends itself."""
        self.leaving[worker] = (device, time.monotonic())

    def nodes(self) -> set[str]:
        """Return the ids of the nodes on which a worker inverts, writes or loads, or is about to."""
        since = time.monotonic() - _RESTART_S
        devices = {run.device for run in self.running.values()} | set(self.loading.values())
        devices |= {device for device, left_at in self.leaving.values() if left_at > since}
        return {device.node_id for device in devices}

    def of_process(self, name: str) -> dict[int, Running]:
        """Return what a process works on."""
        return {shard_id: running for shard_id, running in self.running.items() if running.name == name}

    def inverted_by(self, name: str) -> list[int]:
        """Return the shard that a process inverts, one at most."""
        return [shard_id for shard_id, running in self.of_process(name).items() if not running.inverted]

    def lost_processes(self, alive: Container[str]) -> set[str]:
        """Return the names of the processes on nodes that are lost."""
        return {run.name for run in self.running.values() if run.device.node_id not in alive}

    def earlier_processes(self, worker: str, name: str) -> set[str]:
        """Return the names of the processes that a worker had before this one, and that did not end their shards."""
        return {run.name for run in self.running.values() if run.worker == worker and run.name != name}


@dataclass(frozen=True)
class Room:
    """How many workers the cluster can still give a pass, and how long to wait for them.

    Attributes:
        seats: number of workers of the pool that the present nodes have room for.
        fixed: whether no more nodes can join the cluster.
        start_timeout_s: seconds to wait for workers that Ray is still starting.
    """

    seats: int
    fixed: bool
    start_timeout_s: float

    def patience_s(self, num_waiting: int, num_turns_left: int, *, any_left: bool) -> float:
        """Return how many seconds without activity end the pass.

        Args:
            num_waiting: number of workers whose device is retired; they wait for the others.
            num_turns_left: number of turns that no worker has yet.
            any_left: whether any shard is not done.
        """
        if not any_left:
            # The driver ends the pass, once it has heard of all.
            return _GROWING_S
        if num_turns_left <= TURNS_PER_WORKER * num_waiting:
            # Nobody else gets a turn.
            return _BETWEEN_SHARDS_S
        if num_waiting >= self.seats:
            return _BETWEEN_SHARDS_S if self.fixed else _GROWING_S
        return max(self.start_timeout_s, _BETWEEN_SHARDS_S)
