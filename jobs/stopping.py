"""End a job on Ctrl-C and SIGTERM: one line instead of a traceback, and nothing of Ray left running.

This module must stay light: it is in force before anything heavy is imported.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_code(number: int) -> int:
    """The exit code of a process that a signal stopped, as shells count it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def stop_quietly_while_importing() -> None:
    """Let a signal that comes before the job itself runs (importing takes seconds) end the process with one line."""

    for number in _SIGNALS:
        signal.signal(number, _stop_importing)


def _stop_importing(number: int, frame: FrameType | None) -> None:
    print("stopped: nothing was done", file=sys.stderr, flush=True)
    os._exit(exit_code(number))


def _set_again(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # After a job Ray cleans up for a second or two, which must not be interrupted.
        signal.signal(number, signal.SIG_IGN if handler is _stop_importing else handler)


class Stop:
    """The signal that stops a job, as soon as there is one.

    Attributes:
        number: number of the signal; SIGINT until one arrives.
    """

    def __init__(self) -> None:
        self.number: int = signal.SIGINT

    @contextmanager
    def as_interrupt(self) -> Iterator[None]:
        """Within it both signals raise KeyboardInterrupt in the main thread, which must be the caller's.

        Ray lets no other exception of a signal handler through, and forgets subclasses of this one.
        """
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.signal(number, self._interrupt)
        try:
            yield
        finally:
            _set_again(before)

    @contextmanager
    def end_at_once(self) -> Iterator[None]:
        """Within it, while the job is being cleaned up, a further signal ends the process without waiting."""
        before = {number: signal.signal(number, self._end) for number in _SIGNALS}
        try:
            yield
        finally:
            _set_again(before)

    def read_exit(self, exited: SystemExit) -> None:
        """Take note of the signal that one of Ray's own handlers turned into an exit."""
        if exited.code == signal.SIGTERM:
            self.number = signal.SIGTERM

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        raise KeyboardInterrupt

    def _end(self, number: int, frame: FrameType | None) -> None:
        # It is not imported here, because a process that has not loaded Ray has nothing of Ray to end.
        cluster = sys.modules.get("pipeline.cluster")
        if cluster is not None:
            cluster.kill_own_processes()
        os._exit(exit_code(self.number))
