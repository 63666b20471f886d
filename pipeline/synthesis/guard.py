"""Guard an actor against broken GPUs, and report what it works on; see `attempts`."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
from ray.actor import ActorHandle

from pipeline import storage
from pipeline.errors import DatasetError, OtherModelError, one_line
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.devices import this_device
from pipeline.synthesis.faults import is_device_error, last_frames
from pipeline.synthesis.loading import Loader
from pipeline.synthesis.outcome import Outcome, to_table
from pipeline.synthesis.records import Begun, Refusal
from pipeline.synthesis.shards import ShardPlan
from pipeline.synthesis.writer import PartWriter, UnwrittenShard, record_failure, worker_name
from pipeline.transient import is_of_store

_WAIT_S = 1.0
# Number of times that an idle worker looks for a shard during one turn.
_LOOKS_PER_TURN = 4
# Seconds for other calls to return their outcomes, and for Ray to receive a result, before this process exits.
_LEAVE_S, _HEAR_S = 60.0, 1.0
# Characters of the reason why a device failed, which may hold a long path.
_LONGEST_REASON = 500


@dataclass(frozen=True)
class _Inverted:
    """A shard that is to be stored, by the writer that made it, in an attempt that was begun."""

    writer: PartWriter
    made: UnwrittenShard
    begun: Begun


class GuardedWriter:
    """A `PartWriter` for `map_batches` that loads its teacher with its first shard.

    Its constructor must not fail, because Ray Data ends the whole run if the constructor of one actor does.

    Where Ray calls it for two turns at once, a shard is inverted while the last one is encoded and written. All that
    uses the GPU happens in one thread: CUDA graphs belong to the thread that made them.

    Args:
        config: settings of the dataset.
        digest: the driver's digest of the config.
        schema_version: version of the dataset's schema, from its manifest.
        shards: all shards of the dataset. Batches hold only the numbers of turns.
        attempts: the actor that records the run's attempts.
        turn_s: seconds for which a turn takes one shard after another. The first turn takes one shard only, so that the
            driver soon hears of each worker.

    Raises:
        OtherModelError: on the first shard; this actor sees another teacher.
    """

    def __init__(
        self,
        config: SynthesisConfig,
        digest: str,
        schema_version: int,
        shards: ShardPlan,
        attempts: ActorHandle,
        turn_s: float = 0.0,
    ) -> None:
        self._config, self._shards, self._attempts, self._turn_s = config, shards, attempts, turn_s
        self._actor = ray.get_runtime_context().get_actor_id()
        self._device, self._name = this_device(), worker_name()
        self._where = {"node": self._device.node, "gpu": self._device.card}
        self._loader = Loader(config, digest, schema_version, self._name, self._device)
        self._writer: PartWriter | None = None
        self._poisoned, self._reported = False, False
        self._inverting, self._storing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        # Turns that have a shard or an outcome.
        self._holding: set[int] = set()
        self._returned = threading.Condition()
        self._shard_s = 0.0

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        """Yield a table for each turn, with the outcome of each shard; see `outcome.from_table`."""
        try:
            for turn in batch["turn"].tolist():
                yield to_table(self._outcomes(turn))
                self._reported = True
        finally:
            with self._returned:
                self._holding.difference_update(batch["turn"].tolist())
                self._returned.notify()

    def _outcomes(self, turn: int) -> list[Outcome]:
        """Do shards in a turn until its time is over, or there is none to do."""
        outcomes: list[Outcome] = []
        end = time.monotonic() + (self._turn_s if self._reported else 0.0)
        while True:
            outcome = self._do(turn, first=not outcomes)
            if outcome is not None:
                outcomes.append(outcome)
                # Where storage failed the turn ends, so that one machine's failures in a row do not end the run.
                if outcome.over or outcome.storage_failed:
                    return outcomes
            elif outcomes:
                return outcomes
            else:
                time.sleep(self._turn_s / _LOOKS_PER_TURN)
                if self._ask_if_more_may_come(turn):
                    continue
            # After an error the process must end as soon as its outcomes are reported. Outcomes must not wait for a
            # long shard either.
            if self._poisoned or time.monotonic() + (self._shard_s if outcomes else 0.0) >= end:
                return outcomes

    def _ask_if_more_may_come(self, turn: int) -> bool:
        try:
            return self._ask("may_come", turn)
        except ray.exceptions.RayActorError:
            return False

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        while True:
            try:
                return ray.get(getattr(self._attempts, method).remote(*arguments, **named))
            # The network between the machines, which is no reason to end the pass for all.
            except ray.exceptions.ActorUnavailableError:
                time.sleep(_WAIT_S)

    def _do(self, turn: int, *, first: bool) -> Outcome | None:
        try:
            inverted = self._inverting.submit(self._invert, turn, first=first).result()
            return self._storing.submit(self._store, inverted).result() if isinstance(inverted, _Inverted) else inverted
        except ray.exceptions.RayActorError:
            # The driver has ended the run, and its record with it; or that was lost, as the driver finds out then.
            return Outcome(None, self._name, over=True)

    def _invert(self, turn: int, *, first: bool) -> _Inverted | Outcome | None:
        """Return an inverted shard, or the outcome of one that is not to be stored; None if there is none to do.

        Args:
            turn: number of the turn.
            first: whether the turn has no outcome yet; only then may it wait, or may the process end.
        """
        if self._poisoned and not self._ask("is_retired", self._device):
            if not first:
                return None
            # A CUDA context is unusable after an error. Ray starts another process, and repeats this call.
            self._leave()
        started = time.monotonic()
        loaded = self._writer is not None
        if not self._ask("enter", self._actor, self._device, self._name, loaded=loaded, turn=turn):
            return self._wait(turn) if first else None
        try:
            writer = self._loaded(turn)
        except OtherModelError:
            raise
        # The driver has loaded the same teacher, so any failure here is this machine's, even a library's KeyError, but
        # for storage that does not answer this moment.
        except Exception as error:  # noqa: BLE001
            return self._put_off(error) if is_of_store(error) else self._failed(None, error)
        begun: Begun | None = self._ask("take", self._actor, self._device, self._name, turn)
        if begun is None:
            return None
        # Noted in this thread, because `_leave`, which runs here too, must know of it.
        with self._returned:
            self._holding.add(turn)
        made = self._make(writer, begun)
        if isinstance(made, _Inverted):
            self._shard_s = time.monotonic() - started
        return made

    def _make(self, writer: PartWriter, begun: Begun) -> _Inverted | Outcome:
        shard_id = begun.shard_id
        if begun.refusal:
            return self._given_up(shard_id, begun.refusal)
        if begun.outcome is not None:
            return begun.outcome
        # If the part cannot be read, `make` finds out why, and makes it if it is gone.
        with contextlib.suppress(DatasetError):
            if begun.done:
                found = storage.with_retries(lambda: writer.read_back(shard_id))
                # If the driver does not find it, the node where it was read is to blame.
                return replace(found, attempts=begun.attempt, **self._where)
        if begun.done:
            begun = replace(begun, attempt=begun.attempt + 1)
        try:
            shard = self._shards[shard_id]
            made = writer.make(shard_id, shard["labels"], shard["image_ids"])
        except RuntimeError as error:
            if not is_device_error(error):
                raise
            return self._failed(shard_id, error)
        if not isinstance(made, UnwrittenShard):
            return self._end(made, begun)
        self._ask("inverted", self._device, shard_id)
        return _Inverted(writer, made, begun)

    def _leave(self) -> None:
        """End the process once calls that have outcomes have returned them, and Ray has had time to hear of it.

        Ray would repeat a call whose result has not reached it.
        """
        self._ask("leave", self._actor, self._device)
        with self._returned:
            self._returned.wait_for(lambda: not self._holding, timeout=_LEAVE_S)
        time.sleep(_HEAR_S)
        os._exit(1)

    def _store(self, inverted: _Inverted) -> Outcome:
        return self._end(inverted.writer.store(inverted.made), inverted.begun)

    def _end(self, outcome: Outcome, begun: Begun) -> Outcome:
        notes = [*outcome.notes, *_about(begun.shard_id, begun.history)]
        outcome = replace(outcome, **self._where, attempts=begun.attempt, notes=notes)
        self._ask("end", self._device, begun.shard_id, made=outcome if outcome.is_made else None)
        return outcome

    def _loaded(self, turn: int) -> PartWriter:
        if self._writer is None:
            self._writer = self._loader.load(lambda: self._ask("still_loads", turn))
        return self._writer

    def _put_off(self, error: Exception) -> Outcome:
        """Return the turn, to tell the driver that storage does not answer; the next turn goes on trying."""
        self._ask("put_off", self._actor, one_line(error, _LONGEST_REASON))
        return Outcome(None, self._name, handed_back=True, notes=[self._loader.note(error)])

    def _failed(self, shard_id: int | None, error: Exception) -> Outcome:
        """Hand a shard back to be done elsewhere, or give it up if it has failed too often.

        Args:
            shard_id: number of the shard; None if the teacher could not be loaded.
            error: the error that the device is blamed for.
        """
        self._poisoned, self._writer = True, None
        reason = one_line(error, _LONGEST_REASON)
        refusal: Refusal | None = self._ask(
            "fail", self._actor, self._device, reason, shard_id, trace=last_frames(error)
        )
        doing = "loading the teacher" if shard_id is None else f"inverting shard {shard_id}"
        returned = "" if shard_id is None else "; the shard goes back to the queue"
        note = f"worker {self._name} failed on {self._device} while {doing}{returned}: {reason}"
        if shard_id is not None and refusal:
            return self._given_up(shard_id, refusal)
        return Outcome(shard_id, self._name, handed_back=True, notes=[note])

    def _given_up(self, shard_id: int, refusal: Refusal) -> Outcome:
        labels, error = self._shards[shard_id]["labels"], refusal.error
        reason = record_failure(self._config.output, shard_id, labels, self._name, error, refusal.reason)
        return Outcome(shard_id, self._name, error=error, reason=reason, num_images=len(labels))

    def _wait(self, turn: int) -> Outcome:
        """Keep the GPU occupied until the other workers have done what they can; return what ends the pass."""
        self._writer = None
        while not self._ask("wait", self._actor, turn):
            time.sleep(_WAIT_S)
        return Outcome(None, self._name, over=True)


def _about(shard_id: int, history: list[str]) -> list[str]:
    return [f"{line} while inverting shard {shard_id}, which is being retried" for line in history]
