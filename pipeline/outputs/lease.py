"""Leases: only one process at a time works on an output. A small file names it, and is rewritten while it lives.

Only runs with equal settings compete for a lease (`pipeline.outputs.claims` refuses others), and these write equal
files. So a lease that is taken over by mistake costs time, but no data.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import DatasetError, one_line
from pipeline.log import logger
from pipeline.transient import is_missing

NAME = ".at-work.json"
_BEAT_S = 5.0
# A process on another machine counts as dead after this long without a heartbeat. Clocks are not compared.
_DEAD_S = 30.0
_SETTLE_S = 0.2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def lease(output: str, job: str, *, beat_s: float = _BEAT_S, dead_s: float = _DEAD_S) -> Iterator[bool]:
    """Hold the lease of an output; wait while another live process holds it.

    Args:
        output: folder of the output.
        job: name of the job, for the message about waiting.
        beat_s: seconds between two heartbeats.
        dead_s: seconds without a heartbeat after which another process counts as dead.

    Yields:
        Whether another process worked on the output in the meantime.

    Raises:
        DatasetError: the output cannot be written.
    """
    uri = storage.join(output, NAME)
    mine = {**_who(), "token": uuid.uuid4().hex, "since": datetime.now(UTC).isoformat(timespec="seconds"), "beat": 0}
    with storage.writing_to(output):
        waited = _acquire(uri, mine, job, beat_s, dead_s)
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(uri, mine, over, beat_s), daemon=True)
    heart.start()
    try:
        yield waited
    finally:
        over.set()
        heart.join()
        _release(uri, mine["token"], dead_s)


def _release(uri: str, token: str, dead_s: float) -> None:
    """Delete a lease that is ours. Where storage does not answer, only warn: the result of the work counts more."""

    def delete() -> None:
        if _token(_read(uri)) == token:
            storage.remove(uri)

    try:
        storage.with_retries(delete)
    except (OSError, DatasetError) as error:
        logger.warning(f"{uri!r} is left, a run that follows soon waits for up to {dead_s:g} s: {one_line(error)}")


# URI → the lease that got no heartbeat for long enough. `claim` asks `is_held` and then takes the lease, and need not
# wait twice. With a heartbeat the content of the file is another, so an entry never hides a living process.
_found_dead: dict[str, dict[str, Any]] = {}


def is_held(output: str, *, dead_s: float = _DEAD_S) -> bool:
    """Return whether a process is at work on an output; asks for a heartbeat where it may be on another machine.

    Args:
        output: folder of the output.
        dead_s: seconds without a heartbeat after which another process counts as dead.

    Raises:
        DatasetError: storage does not answer, so it is not known.
    """
    uri = storage.join(output, NAME)
    first, until = _read_surely(uri), time.monotonic() + dead_s
    if first is None or _is_dead(first) or first == _found_dead.get(uri):
        return False
    logger.info(f"waiting up to {dead_s:g} s to see whether {_described(first)}, is still at work on {output!r}")
    while time.monotonic() < until:
        time.sleep(min(1.0, dead_s))
        now = _read_surely(uri)
        if now != first:
            return now is not None
    _found_dead[uri] = first
    return False


def _who() -> dict[str, Any]:
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return {"host": socket.gethostname(), "boot_id": _boot_id(), "pid": os.getpid(), "pid_namespace": space}


def _boot_id() -> str:
    """Return what Linux calls this run of the machine, until it is started again; empty on another system."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _acquire(uri: str, mine: dict[str, Any], job: str, beat_s: float, dead_s: float) -> bool:
    """Wait until the lease is ours; return whether another process held it."""
    seen: dict[str, Any] | None = None
    seen_at = time.monotonic()
    waited = False
    while not _create(uri, mine, was_seen=bool(seen)):
        # Empty: deleted in the meantime, or incomplete, as a killed process leaves it where there are no hard links.
        other = _read_patiently(uri) or {}
        if other != seen:
            waited = waited or bool(seen)
            seen, seen_at = other, time.monotonic()
        if _token(other) == mine["token"]:
            break
        known = bool(other) and (_is_dead(other) or other == _found_dead.get(uri))
        if known or time.monotonic() - seen_at > dead_s:
            storage.with_retries(lambda: storage.write_json(uri, mine))
            # If several processes find the holder dead, the last one to write gets the lease.
            time.sleep(_SETTLE_S)
            if _token(_read_patiently(uri)) == mine["token"]:
                break
            continue
        if other:
            _announce_waiting(uri, other, job, dead_s)
        time.sleep(min(1.0, beat_s / 2))
    else:
        # Processes that were seen to hold the lease have released it.
        return waited or bool(seen)
    return waited


def _create(uri: str, mine: dict[str, Any], *, was_seen: bool) -> bool:
    """Create the lease if there is none. If a process was seen to hold it, it must be gone at two looks."""
    if was_seen and _read_surely(uri) is not None:
        return False
    return storage.with_retries(lambda: storage.create_json(uri, mine))


_announced: set[str] = set()


def _announce_waiting(uri: str, other: dict[str, Any], job: str, dead_s: float) -> None:
    if str(_token(other)) in _announced:
        return
    _announced.add(str(_token(other)))
    logger.info(
        f"{job}: a run with the same settings is at work on {uri.rpartition('/')[0]!r} ({_described(other)}): waiting "
        f"for it to end, or for {dead_s:g} s without a heartbeat"
    )


def _described(other: dict[str, Any]) -> str:
    return f"{other.get('host')} pid {other.get('pid')}, since {other.get('since')}"


def _is_dead(other: dict[str, Any]) -> bool:
    """Return whether the process ran on this machine and has ended; False if that cannot be known.

    After a restart of the machine its number may be that of another process, and machines may share a name.
    """
    here = _who()
    if any(other.get(name) != here[name] for name in ("host", "boot_id", "pid_namespace")):
        return False
    if not isinstance(other.get("pid"), int):
        return False
    try:
        os.kill(other["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    return False


def _beat(uri: str, mine: dict[str, Any], over: threading.Event, beat_s: float) -> None:
    number = 0
    while not over.wait(beat_s):
        number += 1
        try:
            if _token(_read(uri)) not in (None, mine["token"]):
                logger.warning(f"another process took over {uri.rpartition('/')[0]!r}")
                return
            storage.write_json(uri, {**mine, "beat": number})
        except (OSError, DatasetError):
            continue  # the next heartbeat may succeed; if the store is gone, the work itself fails


def _read(uri: str) -> dict[str, Any] | None:
    """Return the content of the lease file; None if there is none, or if it is incomplete.

    Raises:
        DatasetError: the file cannot be read, so it is not known whether a process holds the lease.
    """
    try:
        value = storage.read_json(uri)
    except DatasetError as error:
        if not (is_missing(error.__cause__) or isinstance(error.__cause__, ValueError)):
            raise
        return None
    return value if isinstance(value, dict) else None


def _read_patiently(uri: str) -> dict[str, Any] | None:
    return storage.with_retries(lambda: _read(uri))


def _read_surely(uri: str) -> dict[str, Any] | None:
    """Return the content of the lease file; None if there is none at two looks.

    While a file is replaced, some file systems have none of that name for a moment.

    Raises:
        DatasetError, OSError: storage kept failing.
    """
    there = _read_patiently(uri)
    if there is None:
        time.sleep(_SETTLE_S)
        there = _read_patiently(uri)
    return there


def _token(lease: dict[str, Any] | None) -> Any:
    return None if lease is None else lease.get("token")
