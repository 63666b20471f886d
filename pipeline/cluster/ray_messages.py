"""Leave out what Ray prints in this process and a user of this project can do nothing about, or need not know."""

import ctypes
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any

from ray import _raylet  # pyright: ignore[reportAttributeAccessIssue]
from ray._private import worker

from pipeline.log import logger

# The number of "fatal" among the severities of Ray's C++ core.
_FATAL = 3
_TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
_TOKEN_ENABLED = "Token authentication is enabled for this Ray cluster"


def quiet_core() -> None:
    """Let Ray's C++ core print nothing in this process but what ends it, unless the user asks for more.

    For each actor of a pool it would warn that arguments of its constructor may get lost, so that it could not be
    restarted (ray#53727). They do not get lost: the driver owns them, they lie on its machine, and the dataset keeps
    them as long as it runs. A worker that is started again after the loss of its node gets them from there.
    """
    if logger.isEnabledFor(logging.DEBUG) or "RAY_BACKEND_LOG_LEVEL" in os.environ:
        return
    core = ctypes.CDLL(_raylet.__file__)
    # Another version of Ray may lack this variable; then the warnings are printed. (The processes of a local cluster
    # would inherit Ray's environment variable for it, and Ray answers that with a line of its own.)
    with suppress(ValueError):
        ctypes.c_int.in_dll(core, "_ZN3ray6RayLog19severity_threshold_E").value = _FATAL


@contextmanager
def without_token_advice() -> Iterator[None]:
    """Inside the context Ray does not say that the cluster it starts here asks for a token, and how to opt out of it.

    This process has the token, and nobody else needs one for a cluster that ends with the job.
    """
    source = logging.getLogger(_TOKEN_LOGGER)
    source.addFilter(_is_no_token_advice)
    try:
        yield
    finally:
        source.removeFilter(_is_no_token_advice)


def _is_no_token_advice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_TOKEN_ENABLED)


def leave_out_pool_ends() -> None:
    """Let Ray print nothing of tasks that were cut off because Ray Data ended a pool whose work is done.

    It kills the actors of a pool without waiting for the last task to hand back that it is over, and Ray announces
    that the task failed and will be tried again. Nothing is missing, and nothing is tried again.
    """
    # Another version of Ray may print elsewhere; then the messages are printed.
    printing = getattr(worker, "print_to_stdstream", None)
    if printing is not None and not hasattr(printing, "__wrapped__"):
        worker.print_to_stdstream = wraps(printing)(partial(_print_others, printing))


def _print_others(printing: Any, data: Mapping[str, Any], *args: Any, **options: Any) -> None:
    lines = [line for line in data.get("lines", ()) if not _tells_of_pool_end(line)]
    if lines or not data.get("lines"):
        printing({**data, "lines": lines}, *args, **options)


def _tells_of_pool_end(line: str) -> bool:
    return "MapWorker(" in line and "killed by `ray.kill`" in line
