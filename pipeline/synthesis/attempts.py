"""What a run knows of its workers and of their attempts at shards, kept where the death of a worker does not reach it.

Ray starts a worker that died again, and gives it the same shard, without end and without saying so. So each worker
tells one small actor, on the driver's machine, what it is about to do:

- A shard that was begun and not ended killed its worker. After `max_attempts` it is given up, and recorded as failed.
- A device (a GPU, or a node's CPUs) on which one attempt after another fails is retired. Its worker stays alive and
  idle, so that Ray does not give the GPU to anyone else. Shards that Ray has assigned to it are handed back once no
  other worker has anything left to do.
"""

import time
from dataclasses import dataclass, field

import ray

from pipeline.synthesis.devices import Device

# A GPU is retired when so many errors follow each other without a shard done between them.
MAX_DEVICE_ERRORS = 2
# Ray Data assigns a worker the shard that it works on, and the one after it.
_SHARDS_PER_WORKER = 2
# Between two shards of a worker there is less; a worker that is started again takes longer, and is waited for.
_BETWEEN_SHARDS_S = 3.0
# A cluster that was joined may grow: another machine may come.
_GROWING_S = 60.0
# A node that is lost takes innocent shards along: it counts for less than a worker that dies alone.
_LOST_NODES_PER_ATTEMPT = 3


@dataclass
class _Shard:
    """Attempts at a shard that ended in no part.

    Attributes:
        history: what became of each attempt, in words.
        lost_nodes: how many of them ended with their node.
    """

    history: list[str] = field(default_factory=list)
    lost_nodes: int = 0


@dataclass(frozen=True)
class Begun:
    """The answer to a worker that wants to begin a shard.

    Attributes:
        history: what became of earlier attempts, as far as the driver was not told.
        refusal: why the shard is given up; empty where the worker is to do it.
    """

    history: list[str]
    refusal: str


class Attempts:
    """Attempts of one run; made a Ray actor by the driver.

    Args:
        max_attempts: at a shard, before it is given up.
    """

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._shards: dict[int, _Shard] = {}
        self._errors: dict[Device, int] = {}
        self._retired: dict[Device, str] = {}
        self._trace = ""
        self.open_pass([], 1, fixed_size=True, start_timeout_s=0)

    # What the driver asks.

    def open_pass(self, shard_ids: list[int], seats: int, *, fixed_size: bool, start_timeout_s: float) -> None:
        """Begin with a new pool of workers.

        Args:
            shard_ids: to be done.
            seats: workers that the cluster has room for now.
            fixed_size: no node can join the cluster any more.
            start_timeout_s: to wait for workers that Ray is still starting.
        """
        self._left = set(shard_ids)
        self._seats, self._fixed, self._start_timeout_s = seats, fixed_size, start_timeout_s
        self._loading: dict[str, Device] = {}
        self._running: dict[int, tuple[Device, str]] = {}
        self._waiting: set[str] = set()
        self._over = False
        self._last_event = time.monotonic()

    def retired(self) -> dict[Device, str]:
        """Return the devices that get no more work, and why."""
        return dict(self._retired)

    def last_trace(self) -> str:
        """Return where in the code the last error not known as a machine's was raised; empty where there is none."""
        return self._trace

    def is_retired(self, device: Device) -> bool:
        """Return whether a device gets no more work."""
        return device in self._retired

    # What workers say.

    def enter(self, worker: str, device: Device, *, loaded: bool) -> bool:
        """Ask for work.

        Args:
            worker: the id of its actor, which stays when Ray starts it again.
            device: the one it computes on.
            loaded: it has loaded the teacher; otherwise it does so next.

        Returns:
            Whether it may work; otherwise its device is retired.
        """
        self._last_event = time.monotonic()
        died_at = self._loading.pop(worker, None)
        if died_at is not None:
            self._count(died_at, "its process died while it loaded the teacher")
        if device in self._retired:
            return False
        if not loaded:
            self._loading[worker] = device
        return True

    def begin(self, worker: str, device: Device, shard_id: int, name: str) -> Begun:
        """Say that a shard is worked on from now on, by the process of that name."""
        self._last_event = time.monotonic()
        self._loading.pop(worker, None)
        shard = self._shards.setdefault(shard_id, _Shard())
        before = self._running.pop(shard_id, None)
        deaths = []
        if before is not None:
            died_at, died = before
            lost = died_at.node_id not in self._alive_nodes()
            shard.lost_nodes += lost
            deaths = [f"worker {died} {'was lost with its node' if lost else 'died'} ({died_at})"]
            shard.history += deaths
        refusal = self._given_up(shard_id)
        if refusal:
            self._left.discard(shard_id)
        else:
            self._running[shard_id] = device, name
        return Begun(deaths, refusal)

    def end(self, device: Device, shard_id: int) -> None:
        """Say that a shard is done, or failed for a reason of its own."""
        self._last_event = time.monotonic()
        self._running.pop(shard_id, None)
        self._left.discard(shard_id)
        self._errors.pop(device, None)

    def fail(self, worker: str, device: Device, reason: str, shard_id: int, *, loading: bool, trace: str = "") -> str:
        """Record that a device failed.

        Args:
            worker: the id of its actor.
            device: the one that failed.
            reason: in a line.
            shard_id: that it was to do, and hands back or gives up.
            loading: it was not begun, for the teacher could not be loaded.
            trace: where in the code the error was raised, if that is worth telling.

        Returns:
            Why the shard is given up; empty where another worker is to do it.
        """
        self._last_event = time.monotonic()
        self._loading.pop(worker, None)
        self._trace = trace or self._trace
        self._count(device, reason)
        # Handed back, it is another pass's.
        self._left.discard(shard_id)
        if loading:
            return ""
        self._running.pop(shard_id, None)
        self._shards.setdefault(shard_id, _Shard()).history.append(f"{device} failed: {reason}")
        return self._given_up(shard_id)

    def wait(self, worker: str) -> bool:
        """Return whether the worker of a retired device, which asks again and again, should hand back its shards."""
        self._waiting.add(worker)
        if not self._over and not self._running and not self._loading:
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

    def _count(self, device: Device, reason: str) -> None:
        self._errors[device] = self._errors.get(device, 0) + 1
        if self._errors[device] >= MAX_DEVICE_ERRORS:
            self._retired.setdefault(device, reason)

    def _given_up(self, shard_id: int) -> str:
        shard = self._shards[shard_id]
        lost, own = shard.lost_nodes, len(shard.history) - shard.lost_nodes
        if own < self._max_attempts and lost < _LOST_NODES_PER_ATTEMPT * self._max_attempts:
            return ""
        cause = " (killed for the memory it takes, or crashed?)" if "died" in shard.history[-1] else ""
        last = "; ".join(shard.history[-self._max_attempts :])
        return f"given up after {len(shard.history)} attempts{cause}: {last}"

    def _alive_nodes(self) -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
