"""Errors that come back from Ray: ours as they were raised, without Ray's traceback."""

import errno
from collections.abc import Callable

import pytest
import ray
import ray.data
import ray.exceptions

from pipeline.cluster import connect, own_errors
from pipeline.errors import DatasetError, IncompleteError, ModelError, NonFiniteError, PipelineError

pytestmark = pytest.mark.usefixtures("ray_session")


class NeverStarts:
    def __init__(self) -> None:
        raise ModelError("no such model")

    def __call__(self, batch: dict) -> dict:
        return batch


def _fails(row: dict) -> dict:
    raise NonFiniteError(7, "tv_l2", row["id"])


@ray.remote
def _task() -> None:
    raise DatasetError("cannot read 'x'")


@ray.remote(max_restarts=0)
class Dies:
    def work(self) -> None:
        import os

        os._exit(1)


def in_a_task() -> None:
    ray.get(_task.remote())


def in_a_row() -> None:
    ray.data.range(1).map(_fails).take_all()


def while_an_actor_starts() -> None:
    rows = ray.data.range(1).map_batches(NeverStarts, compute=ray.data.ActorPoolStrategy(size=1))
    rows.context.wait_for_min_actors_s = 60
    rows.take_all()


@ray.remote
def _on_a_full_disk(deeper: int) -> None:
    if deeper:
        ray.get(_on_a_full_disk.remote(deeper - 1))
    raise ray.exceptions.OutOfDiskError("1 of 1 GB\nused")


@ray.remote
def _without_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")


def on_a_full_disk() -> None:
    ray.get(_on_a_full_disk.remote(0))


def in_a_task_of_a_task() -> None:
    ray.get(_on_a_full_disk.remote(1))


def without_space() -> None:
    ray.get(_without_space.remote())


def with_its_actor() -> None:
    ray.get(Dies.remote().work.remote())


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (in_a_task, DatasetError, "^cannot read 'x'$"),
        (in_a_row, NonFiniteError, "^shard 0: tv_l2 is not finite at step 7$"),
        (while_an_actor_starts, ModelError, "^no such model$"),
        (with_its_actor, IncompleteError, "^Ray gave up: "),
        (on_a_full_disk, IncompleteError, r"^Ray gave up: OutOfDiskError: 1 of 1 GB used "),
        (in_a_task_of_a_task, IncompleteError, "^Ray gave up: OutOfDiskError: "),
        (without_space, IncompleteError, r"^Ray gave up: OSError: .*No space left on device: '/tmp/x'$"),
    ],
)
def test_ours_come_back_as_they_were(work: Callable[[], None], error: type[PipelineError], message: str) -> None:
    connect()
    with pytest.raises(error, match=message), own_errors():
        work()


def test_a_fault_in_our_code_keeps_its_traceback() -> None:
    @ray.remote
    def faulty() -> float:
        return 1 / 0

    with pytest.raises(ray.exceptions.RayTaskError, match="ZeroDivisionError"), own_errors():
        ray.get(faulty.remote())
