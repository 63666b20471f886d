"""Joining a Ray cluster, and the errors that come back from one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data
import ray.exceptions
from ray._private import worker
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.errors import IncompleteError, PipelineError, one_line


def connect() -> bool:
    """Join the cluster this process belongs to (RAY_ADDRESS, or one started on this machine), else start a local one.

    A process that has joined already stays where it is. Standard output is left to the job: what workers print goes
    to Ray's log files, and Ray Data tells of warnings alone.

    Returns:
        Whether the cluster is one that this process started, now or before: no node will join it.
    """
    if not ray.is_initialized():
        # The dashboard concerns a cluster that this call starts, and an existing one ignores it.
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns that there are no progress bars, which is what was asked for.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    # They print the traceback of an error that is raised all the same.
    for name in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Our own errors come back as what they are, and not as text in Ray's.
    context.raise_original_map_exception = True
    # None where Ray Client speaks to a cluster from afar.
    node = worker._global_node
    return node is not None and node.is_head()


# What a task may end with through no fault of its code: a full disk or object store, a worker that was killed.
_WORLD = (ray.exceptions.RayError, OSError, MemoryError)


@contextmanager
def own_errors() -> Iterator[None]:
    """Turn what Ray raises on the driver into our own errors, where it is about the world and not about our code.

    Raises:
        PipelineError: as a worker raised it, without Ray's traceback.
        IncompleteError: workers could not start, kept dying, or nothing moved any more; or a machine ran out of disk
            or memory.
    """
    try:
        yield
    except ray.exceptions.GetTimeoutError as error:
        raise IncompleteError(f"no worker could start in time: {free_resources()}: {error}") from error
    except (ExecutionTimeoutError, ray.exceptions.RayError) as error:
        ours = _our_error(error)
        if ours is not None:
            raise ours from None
        root = _root(error)
        if isinstance(error, ray.exceptions.RayTaskError) and not isinstance(root, _WORLD):
            raise  # a fault in our code: its traceback tells where
        raise IncompleteError(f"Ray gave up: {one_line(root, most=1000)}") from error


def _root(error: BaseException) -> BaseException:
    """Return what a task ended with, or a task that it waited for; of another error the error itself."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def _our_error(error: BaseException) -> PipelineError | None:
    """The error of ours that a task, or an actor while it was starting, ended with."""
    # An actor that died while starting carries the error of its constructor as its argument.
    for carrier in (error, *error.args):
        cause = getattr(carrier, "cause", None)
        if isinstance(cause, PipelineError):
            return cause
    return None


def free_resources() -> str:
    """In words, what of the cluster is not taken: why an actor may be waiting."""

    total, free = ray.cluster_resources(), ray.available_resources()
    return ", ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s are free" for name in ("CPU", "GPU"))
