"""Record of a run's workers and their attempts at shards, kept in an actor that survives the death of a worker.

Ray silently restarts a worker that died and gives it the same shard, over and over. So each worker reports to one small
actor on the driver's machine what it is about to do:

- A shard that was begun and not ended has killed its worker. After `max_attempts` the shard is given up and recorded as
  failed.
- A device (a GPU, or a node's CPUs) on which one attempt after another fails is retired. Its worker stays alive and
  idle, so that Ray does not give the GPU to anyone else. Shards that Ray has assigned to it are handed back once no
  other worker has anything left to do.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import ray

from pipeline.synthesis.devices import Device

# A device is retired after this many errors, of each actor that shares it, without a finished shard between them.
MAX_DEVICE_ERRORS = 2
# Ray Data assigns each worker the shard that it works on and the next one.
_SHARDS_PER_WORKER = 2
# Longer than a worker takes between two shards. A restarted worker takes longer, and is waited for.
_BETWEEN_SHARDS_S = 3.0
# Waited for another machine, if the cluster can grow.
_GROWING_S = 60.0
# A lost node takes innocent shards along, so it counts for less than a worker that dies alone.
_LOST_NODES_PER_ATTEMPT = 3


@dataclass
class _Shard:
    """Attempts at a shard that is not made yet.

    Attributes:
        num_begun: attempts that were begun.
        history: how each attempt ended, in words.
        unreported: those of them that the driver does not know yet.
        lost_nodes: number of attempts that ended because their node was lost.
    """

    num_begun: int = 0
    history: list[str] = field(default_factory=list)
    unreported: list[str] = field(default_factory=list)
    lost_nodes: int = 0


@dataclass(frozen=True)
class _Running:
    """The shard that a worker's process works on, and whether all that is left of it is to write the part."""

    worker: str
    device: Device
    name: str
    inverted: bool = False


@dataclass(frozen=True)
class Begun:
    """The answer to a worker that wants to begin a shard.

    Attributes:
        history: how earlier attempts ended, of those that the driver has not been told of yet.
        refusal: why the shard is given up; empty if the worker may do it.
        done: whether this run has made the shard already, and its worker died before Ray heard of it.
        handed_back: whether the shard failed in this pass already, and is for another worker in the next.
        attempt: number of this attempt at the shard, counted from 1; of one that is done, of the attempt that made it.
    """

    history: list[str] = field(default_factory=list)
    refusal: str = ""
    done: bool = False
    handed_back: bool = False
    attempt: int = 0


class Attempts:
    """Attempts of one run; the driver makes this class a Ray actor.

    Args:
        max_attempts: attempts at a shard before it is given up.
        actors_per_gpu: actors that share a GPU, and fail together with it.
        begun_before: shards that an earlier run began and did not finish. Its attempt is reported, but it does not use
            up one of `max_attempts`.
    """

    def __init__(self, max_attempts: int, *, actors_per_gpu: int = 1, begun_before: Sequence[int] = ()) -> None:
        self._max_attempts, self._actors_per_gpu = max_attempts, actors_per_gpu
        self._shards = {shard_id: _Shard(num_begun=1) for shard_id in begun_before}
        self._errors: dict[Device, int] = {}
        self._retired: dict[Device, str] = {}
        self._trace = ""
        # Shard id → attempts that it took.
        self._done: dict[int, int] = {}
        self.open_pass([], 1, fixed_size=True, start_timeout_s=0)

    # Called by the driver.

    def open_pass(
        self,
        shard_ids: list[int],
        seats: int,
        *,
        fixed_size: bool,
        start_timeout_s: float,
    ) -> None:
        """Start a pass with a new pool of workers.

        Args:
            shard_ids: shards to do in this pass.
            seats: number of workers that the cluster has room for now.
            fixed_size: whether no more nodes can join the cluster.
            start_timeout_s: how long to wait for workers that Ray is still starting.
        """
        self._left = set(shard_ids)
        self._seats, self._fixed, self._start_timeout_s = seats, fixed_size, start_timeout_s
        self._loading: dict[str, Device] = {}
        self._running: dict[int, _Running] = {}
        self._handed_back: set[int] = set()
        self._waiting: set[str] = set()
        self._over = False
        self._last_event = time.monotonic()

    def retired(self) -> dict[Device, str]:
        """Return the devices that get no more work, and why."""
        return dict(self._retired)

    def last_trace(self) -> str:
        """Return the traceback of the last error that is not known to be a machine's fault; empty if there is none."""
        return self._trace

    def is_retired(self, device: Device) -> bool:
        """Return whether a device gets no more work."""
        return device in self._retired

    # Called by workers.

    def enter(self, worker: str, device: Device, name: str, *, loaded: bool) -> bool:
        """Ask for work.

        Args:
            worker: id of its actor, which stays the same when Ray restarts it.
            device: the device it computes on.
            name: of its process.
            loaded: whether it has loaded the teacher; otherwise it does so next.

        Returns:
            Whether it may work; if not, its device is retired.
        """
        self._last_event = time.monotonic()
        died_at = self._loading.pop(worker, None)
        if died_at is not None:
            self._count(died_at, "its process died while it loaded the teacher")
        # What they worked on may be handed back without being begun again.
        for earlier in {run.name for run in self._running.values() if run.worker == worker and run.name != name}:
            self._note_death(earlier)
        if device in self._retired:
            return False
        if not loaded:
            self._loading[worker] = device
        return True

    def begin(self, worker: str, device: Device, shard_id: int, name: str) -> Begun:
        """Record that the process `name` starts to work on a shard."""
        self._last_event = time.monotonic()
        self._loading.pop(worker, None)
        if shard_id in self._done:
            return Begun(done=True, attempt=self._done[shard_id])
        if shard_id in self._handed_back:
            return Begun(handed_back=True)
        before = self._running.get(shard_id)
        if before is not None:
            self._note_death(before.name)
        shard = self._shards.setdefault(shard_id, _Shard())
        refusal = self._given_up(shard_id)
        if refusal:
            self._left.discard(shard_id)
        else:
            shard.num_begun += 1
            self._running[shard_id] = _Running(worker, device, name)
        deaths, shard.unreported = shard.unreported, []
        return Begun(deaths, refusal, attempt=shard.num_begun)

    def inverted(self, device: Device, shard_id: int) -> None:
        """Record that a shard is inverted, and what is left is to write it."""
        self._last_event = time.monotonic()
        self._errors.pop(device, None)
        if shard_id in self._running:
            self._running[shard_id] = replace(self._running[shard_id], inverted=True)

    def end(self, device: Device, shard_id: int, *, made: bool = False) -> None:
        """Record that a shard is done, made by this run or another, or failed for a reason that is not the device's."""
        self._last_event = time.monotonic()
        running = self._running.pop(shard_id, None)
        self._left.discard(shard_id)
        # One that was written after an error was inverted before it.
        if running is None or not running.inverted:
            self._errors.pop(device, None)
        if made:
            # All else that was remembered of it is of no more use, and there may be millions.
            shard = self._shards.pop(shard_id, None)
            # One that was done, and whose part was gone, is made without being begun again.
            self._done[shard_id] = shard.num_begun if shard else self._done.get(shard_id, 0) + 1

    def fail(self, worker: str, device: Device, reason: str, shard_id: int, *, loading: bool, trace: str = "") -> str:
        """Record that a device failed.

        Args:
            worker: id of the worker's actor.
            device: the device that failed.
            reason: in one line.
            shard_id: the shard that the worker had, and now hands back or gives up.
            loading: whether the teacher could not be loaded, so that the shard was not begun.
            trace: traceback of the error, if it helps to find the cause.

        Returns:
            Why the shard is given up; empty if another worker should do it.
        """
        self._last_event = time.monotonic()
        self._loading.pop(worker, None)
        self._trace = trace or self._trace
        self._count(device, reason)
        # The shard is handed back, and belongs to another pass.
        self._left.discard(shard_id)
        if loading:
            return ""
        self._handed_back.add(shard_id)
        self._running.pop(shard_id, None)
        self._shards.setdefault(shard_id, _Shard()).history.append(f"{device} failed: {reason}")
        return self._given_up(shard_id)

    def wait(self, worker: str) -> bool:
        """Return whether the worker of a retired device, which asks again and again, should hand back its shards."""
        self._waiting.add(worker)
        if not self._over and not self._anyone_works():
            idle_s = time.monotonic() - self._last_event
            others_done = len(self._left) <= _SHARDS_PER_WORKER * len(self._waiting)
            if others_done:
                patience_s = _BETWEEN_SHARDS_S
            elif len(self._waiting) >= self._seats:
                patience_s = _BETWEEN_SHARDS_S if self._fixed else _GROWING_S
            else:
                patience_s = max(self._start_timeout_s, _BETWEEN_SHARDS_S)
            self._over = idle_s >= patience_s
        return self._over

    def _anyone_works(self) -> bool:
        """Return whether a worker inverts, writes or loads, as far as is known; one on a lost node does not."""
        devices = {run.device for run in self._running.values()} | set(self._loading.values())
        nodes = {device.node_id for device in devices}
        return bool(nodes) and not nodes.isdisjoint(self._alive_nodes())

    def _count(self, device: Device, reason: str) -> None:
        self._errors[device] = self._errors.get(device, 0) + 1
        together = 1 if device.gpu is None else self._actors_per_gpu
        if self._errors[device] >= MAX_DEVICE_ERRORS * together:
            self._retired.setdefault(device, reason)

    def _note_death(self, name: str) -> None:
        """Record the death of a process against the shard that it inverted, or else against that which it wrote."""
        found = {shard_id: running for shard_id, running in self._running.items() if running.name == name}
        inverting = {shard_id: running for shard_id, running in found.items() if not running.inverted}
        for shard_id in found:
            del self._running[shard_id]
        for shard_id, running in (inverting or found).items():
            lost = running.device.node_id not in self._alive_nodes()
            line = f"worker {name} {'was lost with its node' if lost else 'died'} ({running.device})"
            shard = self._shards.setdefault(shard_id, _Shard())
            shard.lost_nodes += lost
            shard.history.append(line)
            shard.unreported.append(line)

    def _given_up(self, shard_id: int) -> str:
        shard = self._shards[shard_id]
        lost, own = shard.lost_nodes, len(shard.history) - shard.lost_nodes
        if own < self._max_attempts and lost < _LOST_NODES_PER_ATTEMPT * self._max_attempts:
            return ""
        cause = " (killed for using too much memory, or crashed?)" if "died" in shard.history[-1] else ""
        last = "; ".join(shard.history[-self._max_attempts :])
        return f"given up after {len(shard.history)} attempts{cause}: {last}"

    def _alive_nodes(self) -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
