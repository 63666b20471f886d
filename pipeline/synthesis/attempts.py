"""Record of a run's workers and their attempts at shards, kept in an actor that survives the death of a worker.

Ray silently restarts a worker that died and repeats its call, over and over. So each worker asks one small actor on the
driver's machine which shard to do, and reports how that went:

- A shard that was begun and not ended has killed its worker. After `max_attempts` the shard is given up and recorded as
  failed. Until then the next worker that asks gets it.
- So it is with a shard that a device (a GPU, or a node's CPUs) failed on; that device leaves it to others, if there are
  any.
- A device on which one attempt after another fails is retired. Its worker stays alive and idle, so that Ray does not
  give the GPU to anyone else, until no other worker has anything left to do.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import ray

from pipeline.synthesis.at_work import TURNS_PER_WORKER, AtWork, Room
from pipeline.synthesis.blame import DeviceErrors
from pipeline.synthesis.devices import Device
from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.records import Begun, Refusal, Running, ShardRecord
from pipeline.synthesis.shard_queue import Turns

# After so many seconds a device that is alone retries the shards that it failed on; a pass ends only later.
_ALONE_S = 1.0
# Seconds between two looks at which nodes are alive.
_LOOK_S = 5.0


class Attempts:
    """Attempts of one run; the driver makes this class a Ray actor.

    Args:
        max_attempts: number of attempts at a shard before it is given up.
        actors_per_gpu: number of actors that share a GPU, and fail together with it.
        begun_before: shards that an earlier run began. That attempt counts, but uses up none of `max_attempts`.
    """

    def __init__(self, max_attempts: int, *, actors_per_gpu: int = 1, begun_before: Sequence[int] = ()) -> None:
        self._max_attempts, self._devices = max_attempts, DeviceErrors(actors_per_gpu)
        self._shards = {shard_id: ShardRecord(num_begun=1) for shard_id in begun_before}
        self._trace = ""
        # Shard id → attempts that it took.
        self._done: dict[int, int] = {}
        self._next_turn, self._looked = 0, 0.0
        self.open_pass([], 1, fixed_size=True, start_timeout_s=0)

    def open_pass(
        self,
        shard_ids: list[int],
        seats: int,
        *,
        fixed_size: bool,
        start_timeout_s: float,
        num_turns: int | None = None,
    ) -> range:
        """Start a pass with a new pool of workers.

        Args:
            shard_ids: shards to do in this pass, in order.
            seats: number of workers of the pool that the present nodes have room for.
            fixed_size: whether no more nodes can join the cluster, as `pipeline.cluster.is_fixed_size` says.
            start_timeout_s: seconds to wait for workers that Ray is still starting.
            num_turns: number of turns of the pass; by default one for each shard.

        Returns:
            The numbers of its turns.
        """
        numbers = range(self._next_turn, self._next_turn + (len(shard_ids) if num_turns is None else num_turns))
        self._next_turn = numbers.stop
        self._turns, self._left = Turns(shard_ids, numbers), set(shard_ids)
        self._room, self._at_work = Room(seats, fixed_size, start_timeout_s), AtWork()
        self._waiting: set[str] = set()
        self._over, self._why_put_off = False, ""
        self._last_event = time.monotonic()
        return numbers

    def retired(self) -> dict[Device, str]:
        """Return device → why it gets no more work."""
        return dict(self._devices.retired)

    def last_errors(self) -> tuple[str, str]:
        """Return the last traceback, and why a worker could not load its teacher in this pass; either may be empty."""
        return self._trace, self._why_put_off

    def is_retired(self, device: Device) -> bool:
        """Return whether a device gets no more work."""
        return device in self._devices.retired

    def enter(self, worker: str, device: Device, name: str, *, loaded: bool, turn: int) -> bool:
        """Register a worker's turn, and return whether the worker may go on.

        Args:
            worker: id of the worker's actor, which stays the same when Ray restarts it.
            device: the device that the worker computes on.
            name: name of the actor's process.
            loaded: whether the worker has loaded the teacher. If not, it does so next.
            turn: number of the turn that the worker has.

        Returns:
            Whether it may work; if not, its device is retired, or the turn's pass is over.
        """
        if self._turns.is_past(turn):
            return False
        self._turns.enter(worker, device, name, turn)
        self._devices.see(device)
        self._at_work.leaving.pop(worker, None)
        died_at = self._at_work.loading.pop(worker, None)
        if died_at is not None:
            self._devices.count(died_at, "its process died while it loaded the teacher")
        for earlier in self._at_work.earlier_processes(worker, name):
            self._note_death(earlier)
        if self.is_retired(device):
            return False
        if not loaded:
            self._last_event = time.monotonic()
            self._at_work.loading[worker] = device
        return True

    def still_loads(self, turn: int) -> bool:
        """Return whether a worker that loads the teacher should try again, because the pass of its turn goes on."""
        return not self._turns.is_past(turn)

    def put_off(self, worker: str, reason: str) -> None:
        """Record that a worker returns its turn, because storage gave it no teacher: nobody's fault."""
        self._last_event, self._why_put_off = time.monotonic(), reason
        self._at_work.loading.pop(worker, None)

    def leave(self, worker: str, device: Device) -> None:
        """Record that a worker's process ends itself, so that Ray starts another, which repeats the turn."""
        self._last_event = time.monotonic()
        self._at_work.leave(worker, device)

    def take(self, worker: str, device: Device, name: str, turn: int) -> Begun | None:
        """Give a process the next shard; the same one again if it asks twice because an answer was lost; see `enter`.

        Returns:
            The shard; None if there is none for it now, and perhaps later.
        """
        self._at_work.loading.pop(worker, None)
        if self._turns.is_past(turn):
            return None
        self._look_for_lost_nodes()
        self._turns.enter(worker, device, name, turn)
        for shard_id in self._at_work.inverted_by(name):
            return Begun(shard_id, attempt=self._shards[shard_id].num_begun)
        shard_id = None if (rejected := self.is_retired(device)) else self._turns.take(device)
        if shard_id is None and not rejected and self._turns.any_back and self._is_quiet():
            shard_id = self._turns.take(device, any_device=True)
        if shard_id is None:
            return None
        begun = self.begin(worker, device, shard_id, name, turn)
        if begun.done or begun.refusal:
            self._turns.end(worker, turn, shard_id)
        return begun

    def begin(self, worker: str, device: Device, shard_id: int, name: str, turn: int = 0) -> Begun:
        """Record that the process `name` starts to work on a shard."""
        self._last_event = time.monotonic()
        self._at_work.loading.pop(worker, None)
        if shard_id in self._done:
            self._left.discard(shard_id)
            outcome = self._turns.pop_outcome(shard_id)
            return Begun(shard_id, done=True, attempt=self._done[shard_id], outcome=outcome)
        before = self._at_work.running.get(shard_id)
        if before is not None:
            self._note_death(before.name)
        self._turns.begin(shard_id)
        shard = self._shards.setdefault(shard_id, ShardRecord())
        refusal = shard.refusal(self._max_attempts)
        if refusal:
            self._left.discard(shard_id)
        else:
            shard.num_begun += 1
            self._at_work.running[shard_id] = Running(worker, device, name, turn)
        deaths, shard.unreported = shard.unreported, []
        return Begun(shard_id, deaths, refusal, attempt=shard.num_begun)

    def inverted(self, device: Device, shard_id: int) -> None:
        """Record that a shard is inverted, and only needs to be written."""
        self._last_event = time.monotonic()
        self._devices.clear(device)
        if shard_id in self._at_work.running:
            self._at_work.running[shard_id] = replace(self._at_work.running[shard_id], inverted=True)

    def end(self, device: Device, shard_id: int, *, made: Outcome | None = None) -> None:
        """Record that a shard is done, or failed for a reason that is not the device's.

        Args:
            device, shard_id: the worker's device, and the shard that ended.
            made: outcome of a shard that this run made; None if it failed, or if another run made it.
        """
        self._last_event = time.monotonic()
        running = self._at_work.running.pop(shard_id, None)
        if running is not None:
            self._turns.end(running.worker, running.turn, shard_id, made)
        self._left.discard(shard_id)
        # A shard that was inverted before an error, and written after it, does not clear the device of that error.
        if running is None or not running.inverted:
            self._devices.clear(device)
        if made is not None:
            # The rest of the shard's record is useless now, and there may be millions of shards.
            shard = self._shards.pop(shard_id, None)
            # A shard that was done, and whose part was gone, is made again without being begun again.
            self._done[shard_id] = shard.num_begun if shard else self._done.get(shard_id, 0) + 1

    def reject(self, node: str, shard_id: int, reason: str) -> None:
        """Retire a node whose worker wrote or found a part that the driver does not find; another makes it."""
        self._devices.retire_node(node, reason)
        self._done.pop(shard_id, None)
        self._left.add(shard_id)
        self._turns.give_back(shard_id)

    def fail(
        self, worker: str, device: Device, reason: str, shard_id: int | None, *, trace: str = ""
    ) -> Refusal | None:
        """Record that a device failed.

        Args:
            worker: id of the worker's actor.
            device: the device that failed.
            reason: what went wrong, in one line.
            shard_id: the shard that the worker had begun and now hands back or gives up; None if it was loading the
                teacher.
            trace: traceback of the error, if it helps to find the cause.

        Returns:
            Why the shard is given up; None if another worker should do it.
        """
        self._last_event = time.monotonic()
        self._at_work.loading.pop(worker, None)
        self._trace = trace or self._trace
        self._devices.count(device, reason)
        if shard_id is None:
            return None
        running = self._at_work.running.pop(shard_id, None)
        shard = self._shards.setdefault(shard_id, ShardRecord())
        shard.history.append(f"{device} failed: {reason}")
        refusal = shard.refusal(self._max_attempts)
        if not refusal:
            self._turns.give_back(shard_id, failed_on=device)
            return None
        self._left.discard(shard_id)
        if running is not None:
            self._turns.end(running.worker, running.turn, shard_id)
        return refusal

    def wait(self, worker: str, turn: int) -> bool:
        """Return whether a turn's pass is over, so that the worker of a retired device returns it."""
        if self._turns.is_past(turn):
            return True
        self._waiting.add(worker)
        if not self._over and not self._anyone_works():
            patience_s = self._room.patience_s(len(self._waiting), self._turns.num_left, any_left=bool(self._left))
            self._over = time.monotonic() - self._last_event >= patience_s
        return self._over

    def may_come(self, turn: int) -> bool:
        """Return whether a worker that found nothing to do should keep its turn: others work, and many turns are left.

        Ray Data counts an empty turn as progress. With few turns left the worker should end, to release its GPU.
        """
        many = self._turns.num_left > TURNS_PER_WORKER * self._room.seats
        return many and not self._turns.is_past(turn) and bool(self._at_work.nodes())

    def _is_quiet(self) -> bool:
        """Return whether nobody works, and nobody is about to."""
        return time.monotonic() - self._last_event >= _ALONE_S and not self._anyone_works()

    def _anyone_works(self) -> bool:
        """Return whether a worker inverts, writes or loads, or is about to; one on a lost node does not."""
        nodes = self._at_work.nodes()
        return bool(nodes) and not nodes.isdisjoint(self._alive_nodes())

    def _look_for_lost_nodes(self) -> None:
        """Give back what was begun on lost nodes: a worker that Ray cannot start elsewhere never asks again."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_S and self._turns.any_begun:
            self._looked, alive = now, self._alive_nodes()
            self._turns.lose_nodes(alive)
            for name in self._at_work.lost_processes(alive):
                self._note_death(name)

    def _note_death(self, name: str) -> None:
        """Record the death of a process against the shard that it inverted, or else against that which it wrote."""
        found = self._at_work.of_process(name)
        inverting = {shard_id: running for shard_id, running in found.items() if not running.inverted}
        for shard_id in found:
            del self._at_work.running[shard_id]
            self._turns.give_back(shard_id)
        for shard_id, running in (inverting or found).items():
            lost = running.device.node_id not in self._alive_nodes()
            line = f"worker {name} {'was lost with its node' if lost else 'died'} ({running.device})"
            self._shards.setdefault(shard_id, ShardRecord()).add_death(line, with_node=lost)

    def _alive_nodes(self) -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
