"""Turn what Ray raises on the driver into this project's errors."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data
import ray.exceptions
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.errors import IncompleteError, PipelineError, one_line

# Errors that a task may end with through no fault of its code: a full disk or object store, a worker that was killed.
_WORLD = (ray.exceptions.RayError, OSError, MemoryError)


@contextmanager
def own_errors() -> Iterator[None]:
    """Turn what Ray raises on the driver into our own errors, where it is about the world and not about our code.

    Such an error keeps no actors: a process that handles it has its GPUs back.

    Raises:
        PipelineError: as a worker raised it, without Ray's traceback.
        IncompleteError: workers could not start, kept dying, or nothing moved any more; or a machine ran out of disk
            or memory.
    """
    try:
        yield
    except (ExecutionTimeoutError, ray.exceptions.RayError) as error:
        ours, root = _our_error(error), _root(error)
        if ours is None and isinstance(error, ray.exceptions.RayTaskError) and not isinstance(root, _WORLD):
            raise  # a fault in our code: its traceback shows where
        _release_actors(error)
        if ours is not None:
            raise ours from None
        if isinstance(error, ray.exceptions.GetTimeoutError):
            raise IncompleteError(f"no worker could start in time: {free_resources()}: {error}") from error
        raise IncompleteError(f"Ray gave up: {one_line(root, limit=1000)}") from error


def _release_actors(error: BaseException) -> None:
    """Drop all references to the actors of a dataset that ended with an error, so that they are released.

    Ray Data 2.60 stops a dataset whose first block fails only when its executor is collected. The tracebacks of the
    error refer to that, as does a cycle of its own.
    """
    seen: set[int] = set()
    ahead: list[BaseException | None] = [error]
    while ahead:
        found = ahead.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            found.with_traceback(None)
            ahead += [found.__cause__, found.__context__]
    gc.collect()


def _root(error: BaseException) -> BaseException:
    """Return the error that a task, or one that it waited for, ended with; any other error is returned as it is."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def _our_error(error: BaseException) -> PipelineError | None:
    """Return the error of ours that a task, or an actor while it was starting, ended with; None if it is not ours."""
    # An actor that died while starting carries the error of its constructor as its argument.
    for carrier in (error, *error.args):
        cause = getattr(carrier, "cause", None)
        if isinstance(cause, PipelineError):
            return cause
    return None


def free_resources() -> str:
    """Say how many CPUs and GPUs of the cluster are free, as a hint at why an actor is waiting."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return ", ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s are free" for name in ("CPU", "GPU"))
