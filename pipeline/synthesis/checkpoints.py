"""Checkpoints of shards that are being inverted, so that a worker that is lost costs minutes, and not its shard.

`<output>/checkpoints/shard-NNNNN-<digest8>.pt` is what `torch.save` writes, followed by its SHA-256. It is deleted once
the part is written. Images do not depend on it: whoever finds none, or one that is damaged, begins the shard anew. One
that storage does not give for a moment is neither: it is asked for again, as a shard that is begun anew replaces it.
"""

import hashlib
import io
import re
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline import storage
from pipeline.dataset import store
from pipeline.errors import CheckpointError, DatasetError, as_line
from pipeline.inversion import Inversion
from pipeline.models.pickles import read_own
from pipeline.synthesis.snapshots import Snapshots
from pipeline.workers import device_name
from pipeline.workers.checkpoint_timer import CheckpointTimer

FOLDER = "checkpoints"
# Version of the file format; files of other versions are not read.
_FORMAT = 1
_NAME = re.compile(r"shard-(\d{5,})-([0-9a-f]{8})\.pt")
_SHA256_BYTES = 32
# A shard of a second or two has no checkpoint, so the folder need not be listed for each of them.
_LIST_EVERY_S = 60.0
# Seconds before each further attempt to read: minutes in all, for a shard that took hours is at stake.
_RETRY_DELAYS_S = (0.5, 2.0, 8.0, 30.0, 60.0, 120.0)


@dataclass
class _File:
    """The checkpoint of one shard, and what the driver should know of it.

    Attributes:
        uri: location of the checkpoint.
        there: whether the checkpoint may exist.
        resumed: line that says from which step the shard was resumed; empty if it was not.
        notes: lines for the driver about what went wrong.
        reported: whether the notes mention a failed write already.
        seconds: seconds that earlier attempts spent, as the checkpoint states.
    """

    uri: str
    there: bool = False
    resumed: str = ""
    notes: list[str] = field(default_factory=list)
    reported: bool = False
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of the shards that one worker inverts.

    They are written by a thread, while the inversion goes on.

    Args:
        output: folder of the dataset.
        digest: digest of the dataset.
        every_s: seconds between two checkpoints of a shard.
        noticed: function that returns whether the worker's node is about to be taken; it is called every few seconds.
    """

    def __init__(self, output: str, digest: str, every_s: float, noticed: Callable[[], bool] | None = None) -> None:
        self._output, self._digest, self._every_s, self._noticed = output, digest, every_s, noticed
        self._writing = ThreadPoolExecutor(1)
        self._files: dict[int, _File] = {}
        self._listed: list[str] = []
        self._listed_at = float("-inf")

    def follow(
        self, run: Inversion, shard_id: int, seeds: Sequence[int], snapshots: Snapshots | None = None
    ) -> Callable[[], None]:
        """Let a run go on from its checkpoint, if there is one.

        Args:
            run: inversion of the shard, which has not begun yet.
            shard_id: number of the shard.
            seeds: seeds of the run's images, by which the checkpoint is recognized.
            snapshots: what watches the run; None if nothing does.

        Returns:
            A function that takes one step of the run, and writes a checkpoint when it is time for one.

        Raises:
            DatasetError: storage kept failing to answer; the checkpoint stays as it is, if there is one.
        """
        name = f"shard-{shard_id:05d}-{self._digest[:8]}.pt"
        file = self._files[shard_id] = _File(storage.join(self._output, FOLDER, name))
        watched = 0 if snapshots is None else snapshots.count
        facts = {"format": _FORMAT, "digest": self._digest, "shard_id": shard_id, "seeds": [*seeds], "watched": watched}
        # Rounding depends on device and torch version: a part made on two kinds of machine could not be reproduced on
        # one.
        facts |= {"device": device_name(run.images.device), "torch": str(torch.__version__)}
        if self._find(name):
            file.there = True
            try:
                content = storage.with_retries(lambda: storage.read_bytes(file.uri), delays_s=_RETRY_DELAYS_S)
                file.resumed, file.seconds = _go_on(run, file.uri, content, facts, snapshots)
            except (DatasetError, CheckpointError) as error:
                if error.is_transient:
                    raise
                file.notes.append(f"shard {shard_id} was begun anew: {error}")
        when = CheckpointTimer(self._every_s, self._noticed)

        def write(state: dict[str, Any]) -> Future[None]:
            return self._writing.submit(self._write, file, state)

        return _Follower(run, facts, snapshots, when, write, file.seconds).step

    def before(self, shard_id: int) -> tuple[str, float]:
        """Return a line saying from which step a shard was resumed, empty if it was not, and the seconds before."""
        file = self._files.get(shard_id)
        return ("", 0.0) if file is None else (file.resumed, file.seconds)

    def end(self, shard_id: int) -> list[str]:
        """Delete the checkpoint of a shard, if it has one; return notes for the driver, one line each."""
        file = self._files.pop(shard_id, None)
        if file is None:
            return []
        # In the thread that writes, so that a write under way ends first.
        self._writing.submit(_delete, file).result()
        return file.notes

    def _find(self, name: str) -> bool:
        """Return whether there was a checkpoint at the last listing, which is recent.

        Raises:
            DatasetError: storage kept failing to answer.
        """
        if time.monotonic() - self._listed_at > _LIST_EVERY_S:
            try:
                folder = storage.join(self._output, FOLDER)
                self._listed = storage.with_retries(lambda: storage.list_files(folder), delays_s=_RETRY_DELAYS_S)
            except DatasetError as error:
                if error.is_transient:
                    raise
                # Storage that refuses this fails the shard when it refuses the part too.
                self._listed = []
            self._listed_at = time.monotonic()
        return name in self._listed

    def _write(self, file: _File, state: dict[str, Any]) -> None:
        """Write a checkpoint; without it the shard goes on all the same."""
        file.there = True
        try:
            storage.write_bytes(file.uri, _to_bytes(state), temporary_in=store.temporary_folder(self._output))
        except OSError as error:
            if not file.reported:
                file.notes.append(f"{file.uri!r} was not written: {as_line(error)}")
            file.reported = True


class _Follower:
    """Takes the steps of a run, and saves its state between two of them when it is time."""

    def __init__(
        self,
        run: Inversion,
        facts: dict[str, Any],
        snapshots: Snapshots | None,
        when: CheckpointTimer,
        write: Callable[[dict[str, Any]], Future[None]],
        seconds: float,
    ) -> None:
        # The time of earlier attempts counts as if all had been one.
        self._began = time.monotonic() - seconds
        self._run, self._facts, self._snapshots, self._when, self._write = run, facts, snapshots, when, write
        self._written: Future[None] | None = None

    def step(self) -> None:
        """Take a step.

        Raises:
            NonFiniteError, torch.OutOfMemoryError: as `Inversion.step`.
        """
        self._run.step()
        if self._when.wants_to_ask():
            self._when.ask()
        # Storage that is slower than the interval is not given a queue.
        if self._when.is_due() and not self._run.finished and (self._written is None or self._written.done()):
            snapshots = None if self._snapshots is None else self._snapshots.state()
            seconds = time.monotonic() - self._began
            state = {**self._facts, "run": self._run.state(), "forming": snapshots, "seconds": seconds}
            self._written = self._write(state)
            self._when.saved()


def _go_on(
    run: Inversion, uri: str, content: bytes, facts: dict[str, Any], snapshots: Snapshots | None
) -> tuple[str, float]:
    """Load a checkpoint into a run; return a line that says so, and how long its work took.

    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another run.
    """
    state = _from_bytes(uri, content)
    if any(state.get(name) != fact for name, fact in facts.items()):
        raise CheckpointError(f"checkpoint {uri!r} is of another run, device or version of torch")
    run.load_state(state["run"])
    if snapshots is not None:
        snapshots.load_state(state["forming"])
    line = f"shard {facts['shard_id']} went on from a checkpoint at step {run.num_steps} of {run.config.num_steps}"
    # Earlier versions did not note the seconds.
    return line, state.get("seconds", 0.0)


def _to_bytes(state: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).digest()
    content.write(digest)
    return content.getvalue()


def _from_bytes(uri: str, content: bytes) -> dict[str, Any]:
    """Return what a checkpoint holds, as data alone.

    Raises:
        CheckpointError: the file is damaged, or holds more than plain data.
    """
    saved = memoryview(content)[:-_SHA256_BYTES]
    if hashlib.sha256(saved).digest() != content[-_SHA256_BYTES:]:
        raise CheckpointError(f"checkpoint {uri!r} is damaged")
    state = read_own(uri, saved)
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {uri!r} holds no state, but a {type(state).__name__}")
    return state


def _delete(file: _File) -> None:
    try:
        if file.there:
            storage.remove(file.uri)
    except OSError as error:
        file.notes.append(f"{file.uri!r} was not deleted: {as_line(error)}")


def shards_with_checkpoint(output: str, digest: str) -> list[int]:
    """Return the ids of the shards of a dataset that a worker began, and of which it wrote a checkpoint.

    Raises:
        DatasetError: the checkpoints cannot be listed.
    """
    found = map(_NAME.fullmatch, storage.list_files(storage.join(output, FOLDER)))
    return [int(match[1]) for match in found if match and match[2] == digest[:8]]


def clear_checkpoints(output: str, done: Container[int]) -> None:
    """Delete the checkpoints of shards that are done, which killed workers left behind; and the folder if it is empty.

    Raises:
        DatasetError, OSError: they cannot be listed or deleted.
    """
    folder = storage.join(output, FOLDER)
    for name in storage.list_files(folder):
        match = _NAME.fullmatch(name)
        if match and int(match[1]) in done:
            storage.remove(storage.join(folder, name))
    if storage.is_local(folder):
        storage.remove_empty([Path(storage.filesystem(folder)[1])])
