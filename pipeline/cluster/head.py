"""Watch the head of a Ray cluster: without it nothing moves, and Ray ends the process after a minute without a word."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import ray

from pipeline.log import logger

_LOOK_S = 5.0
# Number of looks in a row without an answer after which the head is reported.
_SILENT_LOOKS = 2


def watch_head(address: str) -> None:
    """Report in one line when the head stops answering, and when it answers again, until this process leaves Ray.

    Args:
        address: address of the head's GCS, as host:port.
    """

    def joined() -> bool:
        return ray.is_initialized() and ray.get_runtime_context().gcs_address == address

    threading.Thread(target=watch_while, args=(address, joined), daemon=True, name="watch-head").start()


def watch_while(address: str, joined: Callable[[], bool], *, look_s: float = _LOOK_S) -> None:
    """Watch the head from this thread while `joined` returns true; see `watch_head`."""
    silent = 0
    while joined():
        if answers(address, timeout_s=look_s):
            if silent >= _SILENT_LOOKS:
                logger.warning(f"the head of the Ray cluster, {address}, answers again")
            silent = 0
        else:
            silent += 1
            if silent == _SILENT_LOOKS:
                logger.error(
                    f"the head of the Ray cluster, {address}, does not answer any more: unless it comes back within a "
                    "minute, Ray ends this job; what is done is kept, run it again for the rest"
                )
        time.sleep(look_s)


def answers(address: str, *, timeout_s: float) -> bool:
    """Return whether something listens at host:port."""
    with contextlib.suppress(OSError):
        open_connection(address, timeout_s=timeout_s)
        return True
    return False


def open_connection(address: str, *, timeout_s: float) -> None:
    """Connect to host:port, and close the connection at once.

    Raises:
        OSError: nothing listens there.
        ValueError: the address is not of the form host:port.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
