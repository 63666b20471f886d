"""A worker survives failures of its device; tested without Ray."""

import errno
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.exceptions
import torch

from pipeline import storage
from pipeline.errors import CheckpointError, DatasetError, OtherModelError
from pipeline.synthesis import guard, loading
from pipeline.synthesis.attempts import Attempts
from pipeline.synthesis.devices import Device
from pipeline.synthesis.guard import GuardedWriter
from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.shards import ShardPlan
from pipeline.synthesis.writer import UnwrittenShard
from tests.synthesis.conftest import make_config

GPU = Device("here", "here", "0")


class Exited(Exception):
    """The process ended."""


class HereOnly(Attempts):
    """Attempts on a cluster of one node."""

    def _alive_nodes(self) -> set[str]:
        return {"here"}


@pytest.fixture
def attempts() -> Attempts:
    attempts = HereOnly(3)
    attempts.open_pass([4], 1, fixed_size=True, start_timeout_s=0, num_turns=9)
    return attempts


@pytest.fixture
def start(attempts: Attempts, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], GuardedWriter]:
    """Start a process of the one worker there is."""

    def end(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(guard.ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "a"))
    monkeypatch.setattr(guard, "this_device", lambda: GPU)
    monkeypatch.setattr(loading, "check_gpu", lambda wanted: None)
    storage.write_json(storage.join(str(tmp_path / "out"), "manifest.json"), {})
    monkeypatch.setattr(GuardedWriter, "_ask", lambda self, name, *args, **kw: getattr(attempts, name)(*args, **kw))
    monkeypatch.setattr(os, "_exit", end)
    handle: Any = None
    return lambda: GuardedWriter(make_config(tmp_path, tmp_path / "out"), "digest", 1, ShardPlan([1], 5, 1), handle)


def do(writer: GuardedWriter, turn: int = 0) -> dict[str, Any]:
    """The only row of a turn."""
    (row,) = do_all(writer, turn)
    return row


def do_all(writer: GuardedWriter, turn: int) -> list[dict[str, Any]]:
    (table,) = writer({"turn": np.array([turn])})
    return table.to_pylist()


class Broken:
    """A writer whose constructor fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *arguments: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [KeyError("gamma"), AttributeError("x"), AssertionError(), CheckpointError("gone")])
def test_whatever_fails_while_a_worker_loads_is_its_devices_fault(
    error: Exception, start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PartWriter", Broken(error))
    writer = start()
    row = do(writer)
    assert row["handed_back"]
    assert not row["error"]
    (note,) = row["notes"]
    assert "failed on GPU 0 of node here (here) while loading the teacher: " in note
    assert type(error).__name__ in note
    assert attempts.retired() == {}
    with pytest.raises(Exited):
        do(writer)
    do(start())
    assert list(attempts.retired()) == [GPU]
    trace, put_off = attempts.last_errors()
    assert put_off == ""
    if isinstance(error, CheckpointError):
        assert trace == ""
    else:
        assert "test_guard.py" in trace
        assert trace.splitlines()[-1].startswith(type(error).__name__)
        assert len(trace.splitlines()) < 20


def test_another_teacher_ends_the_run(start: Callable[[], GuardedWriter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PartWriter", Broken(OtherModelError("another")))
    with pytest.raises(OtherModelError):
        do(start())


def busy() -> CheckpointError:
    """Return the error of reading a teacher's checkpoint from a store that throttles."""
    error = CheckpointError("checkpoint: cannot read 's3://teacher'")
    error.__cause__ = OSError(errno.EBUSY, "SlowDown: reduce your request rate")
    return error


class Busy:
    """Stands for the writer's class; a throttling store lets only the last of `attempts` calls make a writer."""

    def __init__(self, attempts: int) -> None:
        self.left = attempts

    def __call__(self, *_: Any) -> Any:
        self.left -= 1
        if self.left:
            raise busy()
        return SimpleNamespace(make=lambda *_: Outcome(4, "here"))


def test_a_store_that_throttles_while_workers_load_is_asked_again_and_no_device_is_blamed(
    start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(loading, "PartWriter", Busy(9))
    monkeypatch.setattr(loading.time, "sleep", slept.append)
    monkeypatch.setattr(loading, "_TELL_S", 3.0)
    writer = start()
    # Pauses take no time here, so that the first turn ends with the pause that would be longer than 3 s.
    first, second = do(writer, 0), do(writer, 1)
    assert first["handed_back"]
    (note,) = first["notes"]
    assert "on GPU 0 of node here (here) waits for storage, which does not answer" in note
    assert "CheckpointError: checkpoint: cannot read 's3://teacher'" in note
    assert (second["shard_id"], second["error"]) == (4, "")
    assert [pause for pause in slept if pause] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert attempts.retired() == {}


def test_a_full_disk_is_the_machines_own(
    start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PartWriter", Broken(OSError(errno.ENOSPC, "No space left on device")))
    do(start())
    do(start())
    assert list(attempts.retired()) == [GPU]


def test_a_worker_tries_the_output_before_its_first_shard(
    start: Callable[[], GuardedWriter], attempts: Attempts, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(uri: str) -> None:
        raise DatasetError(f"cannot write to {uri!r}: OSError: [Errno 30] Read-only file system")

    monkeypatch.setattr(loading.storage, "check_writable", read_only)
    monkeypatch.setattr(loading, "PartWriter", Busy(1))
    row = do(start())
    assert row["handed_back"]
    assert (
        f"on GPU 0 of node here (here) while loading the teacher: DatasetError: cannot write to '{tmp_path}/out'"
        in (row["notes"][0])
    )


def test_a_node_without_the_output_costs_its_workers_alone(
    start: Callable[[], GuardedWriter], attempts: Attempts, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_LOOK_AGAIN_S", (0.0, 0.0))
    (tmp_path / "out" / "manifest.json").unlink()
    (note,) = do(start())["notes"]
    assert "of node here does not find" in note
    do(start())
    assert attempts.retired()[GPU].endswith("Give an output that all machines share, such as s3://...")


def test_a_constructor_that_fails_once_costs_nothing(
    start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PartWriter", Broken(KeyError("gamma")))
    do(start())
    made = Outcome(4, "here")
    monkeypatch.setattr(loading, "PartWriter", lambda *_: SimpleNamespace(make=lambda *_: made))
    row = do(start())
    assert (row["shard_id"], row["error"], row["handed_back"], row["notes"]) == (4, "", False, [])
    assert (row["attempts"], row["node"], row["gpu"]) == (1, "here (here)", "0")
    assert attempts.retired() == {}


class Finding:
    """A writer whose shards are all there already."""

    def __init__(self, *_: Any) -> None:
        pass

    def read_back(self, shard_id: int) -> Outcome:
        return Outcome(shard_id, "here")


def test_a_part_that_is_read_back_names_the_node_where_it_was_read(
    start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the driver does not find it, that node gets no more work."""
    attempts.begin("a", GPU, 4, "an earlier process")
    attempts.end(GPU, 4, made=Outcome(4, "an earlier process"))
    monkeypatch.setattr(loading, "PartWriter", Finding)
    row = do(start())
    assert (row["shard_id"], row["by_another"], row["attempts"]) == (4, False, 1)
    assert (row["node"], row["gpu"]) == ("here (here)", "0")


class Slow:
    """A writer that inverts at once and takes a while to store; its second shard meets a broken GPU."""

    def __init__(self, *_: Any) -> None:
        self.stored: list[int] = []
        self.during: list[str] = []

    def make(self, shard_id: int, *_: Any) -> UnwrittenShard:
        self.during.append(f"invert {shard_id}")
        if shard_id == 1:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        shard: Any = None
        return UnwrittenShard(shard_id, [1], shard, 1.0)

    def store(self, made: UnwrittenShard) -> Outcome:
        time.sleep(0.3)
        self.during.append(f"stored {made.shard_id}")
        return Outcome(made.shard_id, "here")


def test_a_shard_that_is_written_while_the_gpu_breaks_is_kept_and_reported(
    start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    monkeypatch.setattr(loading, "PartWriter", lambda *_: slow)
    monkeypatch.setattr(guard, "_HEAR_S", 0.0)
    first, *_ = attempts.open_pass([0, 1, 2], 1, fixed_size=True, start_timeout_s=0)
    writer = start()
    rows: dict[int, Any] = {}

    def call(turn: int) -> None:
        try:
            rows[turn] = do(writer, first + turn)
        except Exited as exited:
            rows[turn] = exited
            slow.during.append("exit")

    with ThreadPoolExecutor(3) as calls:
        for turn in range(3):
            calls.submit(call, turn)
            time.sleep(0.05)
    # The next shard is inverted while the last is written, and the process ends when both are reported.
    assert slow.during == ["invert 0", "invert 1", "stored 0", "exit"]
    assert (rows[0]["error"], rows[0]["handed_back"]) == ("", False)
    assert rows[1]["handed_back"]
    assert isinstance(rows[2], Exited)
    assert attempts.begin("a", GPU, 0, "another process").done


class Quick(Slow):
    """A writer that makes any shard but the second in a moment."""

    def store(self, made: UnwrittenShard) -> Outcome:
        time.sleep(0.01)
        return Outcome(made.shard_id, "here")


def make_quick(
    writer: GuardedWriter, attempts: Attempts, shard_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[dict[str, Any]]]:
    monkeypatch.setattr(loading, "PartWriter", Quick)
    monkeypatch.setattr(guard, "_HEAR_S", 0.0)
    writer._turn_s = 0.5
    turns = iter(attempts.open_pass(shard_ids, 1, fixed_size=True, start_timeout_s=0, num_turns=9))
    return lambda: do_all(writer, next(turns))


def test_short_shards_share_a_turn_after_the_first(
    start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_turn = make_quick(start(), attempts, [2, 0, 4, 3], monkeypatch)
    assert [row["shard_id"] for row in take_turn()] == [2]
    assert [row["shard_id"] for row in take_turn()] == [0, 4, 3]
    began = time.monotonic()
    assert take_turn() == []
    assert time.monotonic() - began >= 0.5


def test_a_turn_ends_with_an_error_of_its_device_and_reports_what_was_made_before(
    start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_turn = make_quick(start(), attempts, [3, 0, 1, 4], monkeypatch)
    take_turn()
    assert [(row["shard_id"], row["handed_back"]) for row in take_turn()] == [(0, False), (1, True)]
    with pytest.raises(Exited):
        take_turn()
    assert attempts.begin("a", GPU, 0, "next process").done
    another = attempts.take("b", Device("here", "here", "1"), "another", 99)
    assert another
    assert another.shard_id == 1


def test_a_turn_that_outlives_the_run_ends_without_an_error(
    start: Callable[[], GuardedWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would print that it repeats the call, on the standard output of the job."""

    def gone(*_: Any, **__: Any) -> None:
        raise ray.exceptions.RayActorError

    writer = start()
    writer._turn_s = 60.0
    monkeypatch.setattr(GuardedWriter, "_ask", gone)
    assert do(writer)["over"]
