"""Guard an actor against broken GPUs, and report what it works on; see `attempts`."""

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
from ray.actor import ActorHandle

from pipeline import storage
from pipeline.dataset import store
from pipeline.errors import DatasetError, IncompleteError, OtherModelError, PipelineError, one_line
from pipeline.outputs.owners import NOT_SHARED
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.devices import this_device
from pipeline.synthesis.faults import check_gpu, is_device_error
from pipeline.synthesis.outcome import Outcome, to_table
from pipeline.synthesis.records import Begun
from pipeline.synthesis.shards import ShardPlan
from pipeline.synthesis.writer import PartWriter, UnwrittenShard, record_failure, worker_name

# Errors whose message is enough; for others the last few frames of the traceback are kept too.
_SAY_ALL = (PipelineError, OSError, MemoryError)
_NUM_FRAMES = 4
_WAIT_S = 1.0
# How often an idle worker looks for a shard during one turn.
_LOOKS_PER_TURN = 4
# Time for other calls to return their outcomes, and for Ray to receive a result, before this process exits.
_LEAVE_S, _HEAR_S = 60.0, 1.0


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
        config: of the dataset.
        digest: the driver's digest of the config.
        schema_version: of the dataset, from its manifest.
        shards: of the dataset; batches hold the numbers of turns alone.
        attempts: the run's `Attempts`.
        turn_s: seconds for which a turn takes one shard after another. The first one takes one, so that the driver soon
            hears of each worker.

    Raises:
        OtherModelError: on the first shard; this actor sees another teacher.
        IncompleteError: on the first shard; this actor sees another output.
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
        self._digest, self._schema_version = digest, schema_version
        self._actor = ray.get_runtime_context().get_actor_id()
        self._device, self._name = this_device(), worker_name()
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
                # An unwritten shard ends the turn: failures of one machine must not look like failures of the storage.
                if outcome.over or outcome.unwritten:
                    return outcomes
            elif outcomes:
                return outcomes
            else:
                time.sleep(self._turn_s / _LOOKS_PER_TURN)
                if self._ask_if_more_may_come(turn):
                    continue
            # After an error the process is to end, once what it did is reported. What is done waits for no long shard.
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
            writer = self._loaded()
        except (OtherModelError, IncompleteError):
            raise
        # The driver has loaded the same teacher, so any failure here is this machine's, even a library's KeyError.
        except Exception as error:  # noqa: BLE001
            return self._failed(None, error)
        begun: Begun | None = self._ask("take", self._actor, self._device, self._name, turn)
        if begun is None:
            return None
        # In this thread, so that `_leave`, which runs here too, knows of it.
        with self._returned:
            self._holding.add(turn)
        made = self._make(writer, begun)
        if isinstance(made, _Inverted):
            self._shard_s = time.monotonic() - started
        return made

    def _make(self, writer: PartWriter, begun: Begun) -> _Inverted | Outcome:
        shard_id = begun.shard_id
        if begun.refusal:
            return self._given_up(shard_id, "WorkerDied", begun.refusal)
        # If the part cannot be read, `make` finds out why, and makes it if it is gone.
        with contextlib.suppress(DatasetError):
            if begun.done:
                return replace(writer.read_back(shard_id), attempts=begun.attempt)
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
        with self._returned:
            self._returned.wait_for(lambda: not self._holding, timeout=_LEAVE_S)
        time.sleep(_HEAR_S)
        os._exit(1)

    def _store(self, inverted: _Inverted) -> Outcome:
        return self._end(inverted.writer.store(inverted.made), inverted.begun)

    def _end(self, outcome: Outcome, begun: Begun) -> Outcome:
        self._ask("end", self._device, begun.shard_id, made=outcome.is_made)
        notes = [*outcome.notes, *_about(begun.shard_id, begun.history)]
        where = {"node": self._device.node, "gpu": self._device.card}
        return replace(outcome, **where, attempts=begun.attempt, notes=notes)

    def _loaded(self) -> PartWriter:
        if self._writer is None:
            self._check_output()
            check_gpu(self._config.pool.device)
            self._writer = PartWriter(self._config, self._digest, self._schema_version)
        return self._writer

    def _check_output(self) -> None:
        """Check before the first shard that this worker sees the same output as the driver."""
        manifest = store.manifest_uri(self._config.output)
        if not storage.exists(manifest):
            raise IncompleteError(
                f"worker {self._name} of node {self._device.host} does not find {manifest!r}, which this run wrote: "
                f"{NOT_SHARED}"
            )

    def _failed(self, shard_id: int | None, error: Exception) -> Outcome:
        """Hand a shard back to be done elsewhere, or give it up if it has failed too often.

        Args:
            shard_id: of the shard; None if the teacher could not be loaded.
            error: that the device is blamed for.
        """
        self._poisoned, self._writer = True, None
        reason = one_line(error)
        refusal = self._ask("fail", self._actor, self._device, reason, shard_id, trace=_trace(error))
        doing = "loading the teacher" if shard_id is None else f"inverting shard {shard_id}"
        returned = "" if shard_id is None else "; the shard goes back to the queue"
        note = f"worker {self._name} failed on {self._device} while {doing}{returned}: {reason}"
        if shard_id is not None and refusal:
            return self._given_up(shard_id, "DeviceError", refusal)
        return Outcome(shard_id, self._name, handed_back=True, notes=[note])

    def _given_up(self, shard_id: int, error: str, reason: str) -> Outcome:
        labels = self._shards[shard_id]["labels"]
        reason = record_failure(self._config.output, shard_id, labels, self._name, error, reason)
        return Outcome(shard_id, self._name, error=error, reason=reason, num_images=len(labels))

    def _wait(self, turn: int) -> Outcome:
        """Keep the GPU occupied until the other workers have done what they can; return what ends the pass."""
        self._writer = None
        while not self._ask("wait", self._actor, turn):
            time.sleep(_WAIT_S)
        return Outcome(None, self._name, over=True)


def _trace(error: Exception) -> str:
    """Return the last frames of an error's traceback; empty if its message is enough."""
    if isinstance(error, _SAY_ALL) or is_device_error(error):
        return ""
    return "".join(traceback.format_exception(error, limit=-_NUM_FRAMES, chain=False))


def _about(shard_id: int, history: list[str]) -> list[str]:
    return [f"{line} while inverting shard {shard_id}, which is being retried" for line in history]
