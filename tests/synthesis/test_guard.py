"""A worker survives failures of its device; tested without Ray."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import CheckpointError, IncompleteError, OtherModelError
from pipeline.synthesis import guard
from pipeline.synthesis.attempts import Attempts
from pipeline.synthesis.devices import Device
from pipeline.synthesis.guard import GuardedWriter
from pipeline.synthesis.shards import ShardPlan
from pipeline.synthesis.writer import outcome
from tests.synthesis.conftest import make_config

GPU = Device("here", "here", "0")
SHARD = {"shard_id": np.array([4])}


class Exited(Exception):
    """The process ended."""


@pytest.fixture
def attempts() -> Attempts:
    return Attempts(3)


@pytest.fixture
def start(attempts: Attempts, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], GuardedWriter]:
    """Start a process of the one worker there is."""

    def end(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(guard.ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "a"))
    monkeypatch.setattr(guard, "this_device", lambda: GPU)
    monkeypatch.setattr(guard, "check_gpu", lambda wanted: None)
    monkeypatch.setattr(GuardedWriter, "_check_output", lambda self: None)
    monkeypatch.setattr(GuardedWriter, "_ask", lambda self, name, *args, **kw: getattr(attempts, name)(*args, **kw))
    monkeypatch.setattr(os, "_exit", end)
    handle: Any = None
    return lambda: GuardedWriter(make_config(tmp_path, tmp_path / "out"), "digest", 1, ShardPlan([1], 5, 1), handle)


def do(writer: GuardedWriter) -> dict[str, Any]:
    (table,) = writer(SHARD)
    return table.to_pylist()[0]


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
    monkeypatch.setattr(guard, "PartWriter", Broken(error))
    writer = start()
    row = do(writer)
    assert row["handed_back"]
    assert not row["error"]
    (note,) = row["notes"]
    assert "failed on GPU 0 of node here (here) while loading the teacher, another worker will do it: " in note
    assert type(error).__name__ in note
    assert attempts.retired() == {}
    with pytest.raises(Exited):
        do(writer)
    do(start())
    assert list(attempts.retired()) == [GPU]
    trace = attempts.last_trace()
    if isinstance(error, CheckpointError):
        assert trace == ""
    else:
        assert "test_guard.py" in trace
        assert trace.splitlines()[-1].startswith(type(error).__name__)
        assert len(trace.splitlines()) < 20


@pytest.mark.parametrize("error", [OtherModelError("another"), IncompleteError("no manifest")])
def test_what_is_wrong_everywhere_ends_the_run(
    error: Exception, start: Callable[[], GuardedWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PartWriter", Broken(error))
    with pytest.raises(type(error)):
        do(start())


def test_a_constructor_that_fails_once_costs_nothing(
    start: Callable[[], GuardedWriter], attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PartWriter", Broken(KeyError("gamma")))
    do(start())
    made = outcome(4, "here")
    monkeypatch.setattr(guard, "PartWriter", lambda *_: SimpleNamespace(make=lambda *_: made))
    row = do(start())
    assert (row["shard_id"], row["error"], row["handed_back"], row["notes"]) == (4, "", False, [])
    assert attempts.retired() == {}
