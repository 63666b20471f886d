"""One output of `benchmarks.chaos`, made under faults: runs of the job, and what strikes from outside."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos_cluster import JobProcess, Nodes
from benchmarks.chaos_faults import DRIVER_KINDS, FROM_OUTSIDE, NODE_KINDS, STORE_KINDS, Episode, Fault, Kind
from benchmarks.chaos_store import BUCKET, FaultyStore
from benchmarks.chaos_worker import FOLDERS, loading_order

_SIGNALS = {
    "driver_killed": signal.SIGKILL,
    "driver_terminated": signal.SIGTERM,
    "driver_interrupted": signal.SIGINT,
}
# The exit code that each of them must end the job with.
_CODES = {"driver_killed": -9, "driver_terminated": 143, "driver_interrupted": 130}
# A run that takes longer hangs.
_RUN_S = 600.0
# The shortest notice of a spot machine is 30 seconds, in which a hundred of these shards are made.
_NOTICE_S = 2
# A worker waits for a minute for what is to strike it.
_SECOND_STARTS_S = 50.0
_STOP_S = 60.0
_POLL_S = 0.05
# What no user should have to read; the second is Ray's warning of a restart that fails, and none does.
_NOISE = ("Traceback", "has constructor arguments")
# Beside those that a fault ends: a store that is full for long may end a run.
_SPARE_RUNS = 4


@dataclass(frozen=True)
class Struck:
    """A fault that struck; `recovered_s` until the shard that it struck was done, None if that never came."""

    kind: Kind
    recovered_s: float | None


@dataclass(frozen=True)
class Outcome:
    """How an episode went.

    Attributes:
        struck: faults that workers met.
        codes: exit codes of the runs.
        complete: whether the last run said so.
        unexpected: in words, what no run should do: hang, print a traceback, end with another code than its signal's.
    """

    struck: list[Struck]
    codes: list[int]
    complete: bool
    unexpected: list[str]


def play(episode: Episode, job: list[str], output: str, nodes: Nodes, store: FaultyStore, folder: Path) -> Outcome:
    """Run a job until its output is whole, while the faults of the episode strike.

    Args:
        episode: the faults.
        job: arguments of `python -m`.
        output: of the job.
        nodes: of the cluster.
        store: the object store, which has its troubles on the side.
        folder: for orders and logs; made here.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for fault in episode.faults:
        for name in fault.names:
            (folder / "orders" / name).touch()
    nodes.fill()
    runs = _Runs(job, nodes, store, folder)
    most = _SPARE_RUNS + sum(fault.kind in DRIVER_KINDS for fault in episode.faults)
    while runs.number < most and not runs.complete:
        runs.run()
    store.calm()
    struck = [_struck(fault, folder, output, store) for fault in episode.faults]
    return Outcome([one for one in struck if one is not None], runs.codes, runs.complete, runs.unexpected)


class _Runs:
    """Runs of one job, one after another."""

    def __init__(self, arguments: list[str], nodes: Nodes, store: FaultyStore, folder: Path) -> None:
        self._arguments, self._nodes, self._store, self._folder = arguments, nodes, store, folder
        self.codes: list[int] = []
        self.number = 0
        self.complete = False
        self.unexpected: list[str] = []

    def run(self) -> None:
        """Run the job to its end, which a fault may bring about."""
        for broken in (self._folder / "broken").iterdir():
            broken.unlink()
        env = {**self._store.env, "CHAOS": str(self._folder)}
        log = self._folder / f"run-{self.number}"
        self._jobs = [JobProcess(self._arguments, self._nodes.address, env, log)]
        self._ends: dict[JobProcess, int] = {}
        deadline = time.monotonic() + _RUN_S
        while running := [job for job in self._jobs if job.code is None]:
            for name in self._to_be_done(running[0]):
                # What is left when one ends the job strikes the next.
                if running[0].code is None:
                    self._act(name, running[0])
            if time.monotonic() > deadline:
                self.unexpected += [f"{job.log} hung" for job in running]
                for job in running:
                    job.wait(0)
            time.sleep(_POLL_S)
        for job in self._jobs:
            self._take_note_of(job)
        self.number += 1
        # If two runs work at once, either may find the other's last shard missing when it ends.
        self.complete = any(job.code == 0 for job in self._jobs)

    def _take_note_of(self, job: JobProcess) -> None:
        assert job.code is not None
        self.codes.append(job.code)
        if job.code not in (0, 1, self._ends.get(job)):
            self.unexpected.append(f"{job.log} ended with {job.code}")
        self.unexpected += [f"{job.log} printed {noise!r}" for noise in _NOISE if noise in job.reported]

    def _to_be_done(self, job: JobProcess) -> list[str]:
        # What struck the run before strikes this one, not Python while it starts.
        if not job.reported:
            return []
        done = {path.name for path in (self._folder / "acted").iterdir()}
        struck = (path.name for path in sorted((self._folder / "struck").iterdir()))
        return [name for name in struck if name.split("-")[1] in FROM_OUTSIDE and name not in done]

    def _act(self, name: str, job: JobProcess) -> None:
        """Bring about a fault from outside, which may end the job."""
        kind: Any = name.split("-")[1]
        if kind in STORE_KINDS:
            self._store.have(kind, f"{self._folder}/{name}")
        elif kind in NODE_KINDS:
            node_id = json.loads((self._folder / "struck" / name).read_text())["node_id"]
            if kind == "node_drained":
                if not self._nodes.drain(node_id, _NOTICE_S):
                    self.unexpected.append(f"{job.log}: node {node_id} could not be drained")
                (self._folder / "acted" / name).touch()
                time.sleep(_NOTICE_S)
            self._nodes.lose(node_id, replace=kind != "node_lost")
        elif kind == "second_run":
            second = job.again(self._folder / f"run-{self.number}-beside")
            self._jobs.append(second)
            # So that the two are at work at once.
            deadline = time.monotonic() + _SECOND_STARTS_S
            while not second.reported and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        else:
            job.signal(_SIGNALS[kind])
            job.wait(_STOP_S)
            self._ends[job] = _CODES[kind]
        (self._folder / "acted" / name).touch()


def _struck(fault: Fault, folder: Path, output: str, store: FaultyStore) -> Struck | None:
    """Return how a fault went; None if it did not strike, or not as often as it should."""
    records = [folder / "struck" / name for name in fault.names]
    if not all(record.exists() for record in records):
        return None
    struck = json.loads(records[-1].read_text())
    if not _was_seen(fault.kind, records[-1].name, struck["pid"], folder, store):
        return None
    return Struck(fault.kind, _until(struck["time"], _written(fault.shard_id, output, store)))


def _was_seen(kind: Kind, name: str, pid: int, folder: Path, store: FaultyStore) -> bool:
    """Return whether what a worker met had the effect that it should have."""
    if kind in STORE_KINDS:
        return store.hit[f"{folder}/{name}"] > 0
    if kind == "constructor_fails":
        return (folder / "claimed" / loading_order(pid)).exists()
    return kind not in FROM_OUTSIDE or (folder / "acted" / name).exists()


def _written(shard_id: int, output: str, store: FaultyStore) -> list[float]:
    """Return when the part of a shard was written."""
    if output.startswith("s3://"):
        return store.written.get((output.removeprefix(f"s3://{BUCKET}/"), shard_id), [])
    return [os.stat(part).st_mtime for part in Path(output, "data").glob(f"part-{shard_id:05d}-*")]


def _until(struck_at: float, written: list[float]) -> float | None:
    after = [at - struck_at for at in written if at >= struck_at]
    return min(after) if after else None
