"""Print the progress of a synthesis."""

import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

from pipeline.log import logger, one_printed_line
from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.tally import Tally

# Shortest time between two plain lines, so that a run of many small shards does not fill a log.
_PLAIN_INTERVAL_S = 1.0
# After this time without a finished shard, report what the cluster is doing.
_SILENCE_S = 60.0


def report_plan(line: str) -> None:
    """Print a line about the plan."""
    logger.info(f"plan: {line}")


def slowest(num_steps: list[int], whole_run: int | None) -> str | None:
    """Say how many images a batch waited for, if images may end early; None if all ended together, or it is not known.

    Args:
        num_steps: number of steps that each start took.
        whole_run: number of steps of a start that does not end early; None if none may end early.
    """
    if not num_steps:
        return None
    max_steps = max(num_steps)
    last = num_steps.count(max_steps)
    if whole_run is None or (last == len(num_steps) and max_steps < whole_run):
        return None
    if last == len(num_steps):
        return f"ran all {max_steps} steps, none of its {last} images ended early"
    others = (sum(num_steps) - max_steps * last) / (len(num_steps) - last)
    return f"ran {max_steps} steps for {last} of {len(num_steps)} images, the others took {others:.0f} on average"


class ProgressReport:
    """Shards done and failed, images per second, remaining time, mean class loss.

    Args:
        tally: what this run has done so far. The caller updates it.
        num_shards: number of shards in the whole dataset.
        num_done: number of shards that were done before this run.
        num_images: number of images to make in this run.
        stream: stream to write to. On a terminal, a single line is rewritten.
        why_silent: function that says what may be holding up the run.
        num_failed: number of shards that failed before and are left as they are.
        whole_run: number of steps of a start that does not end early; None if none may end early.
    """

    def __init__(
        self,
        tally: Tally,
        *,
        num_shards: int,
        num_done: int,
        num_images: int,
        stream: TextIO,
        why_silent: Callable[[], str],
        num_failed: int = 0,
        whole_run: int | None = None,
    ) -> None:
        self._tally, self._whole_run = tally, whole_run
        self._num_shards, self._done_before, self._failed_before = num_shards, num_done, num_failed
        self._num_images = num_images
        self._stream, self._why_silent = stream, why_silent
        self._rewrites = stream.isatty()
        self._started = self._last_shard = time.monotonic()
        self._began: float | None = None
        self._last_line = -math.inf
        self._printed_counts: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._report_silence, daemon=True)

    def __enter__(self) -> "ProgressReport":
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()
        with self._lock:
            self._print_status(last=True)

    def note(self, line: str) -> None:
        """Print a line between those of the progress; it tells of a fault, and is printed even if INFO is not."""
        with self._lock:
            self._print(f"synthesis: {line}")

    def shard_finished(self, outcome: Outcome) -> None:
        """Print what is special about a shard that has ended, and the status; the tally must have counted the shard."""
        with self._lock:
            self._last_shard = time.monotonic()
            if outcome.error:
                self._print(f"synthesis: shard {outcome.shard_id} failed: {outcome.error}: {outcome.reason}")
            elif outcome.is_made:
                if outcome.resumed and logger.isEnabledFor(logging.INFO):
                    self._print(f"synthesis: {outcome.resumed}")
                waited = slowest(outcome.num_steps, self._whole_run)
                if waited and logger.isEnabledFor(logging.INFO):
                    self._print(f"synthesis: shard {outcome.shard_id} {waited}")
                if self._began is None:
                    # Earlier, nodes were started and models loaded, which says nothing about the speed of later images.
                    self._began = max(self._started, time.monotonic() - outcome.seconds - outcome.store_s)
            self._print_status()

    def status(self) -> str:
        """Return the current line."""
        done, failed = self._counts()
        parts = [f"{done} of {self._num_shards} shards done, {failed} failed"]
        tally = self._tally
        if tally.num_images:
            rate = tally.num_images / max(time.monotonic() - (self._began or self._started), 1e-9)
            left = timedelta(seconds=round(max(0, self.num_images_left) / rate))
            parts += [f"{rate:.3g} images/s, {left} left", f"class loss {tally.class_loss:.4f}"]
        return "synthesis: " + "; ".join(parts)

    @property
    def num_images_left(self) -> int:
        """Images that this run has still to make."""
        tally = self._tally
        return self._num_images - tally.num_images - tally.num_images_by_another - tally.num_images_failed

    def _counts(self) -> tuple[int, int]:
        """Return how many shards of the dataset are done, and how many failed."""
        return self._done_before + self._tally.num_done, self._failed_before + len(self._tally.failures)

    def _print_status(self, *, last: bool = False) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        now, counts = time.monotonic(), self._counts()
        if self._rewrites:
            self._stream.write(f"\r\x1b[K{self.status()}" + ("\n" if last else ""))
            self._stream.flush()
        elif counts != self._printed_counts and (last or now - self._last_line >= _PLAIN_INTERVAL_S):
            self._last_line, self._printed_counts = now, counts
            self._print(self.status())

    def _print(self, line: str) -> None:
        line = one_printed_line(line)
        self._stream.write(f"\r\x1b[K{line}\n" if self._rewrites else f"{line}\n")
        self._stream.flush()

    def _report_silence(self) -> None:
        while not self._ended.wait(_SILENCE_S):
            silent_s = time.monotonic() - self._last_shard
            if silent_s >= _SILENCE_S and logger.isEnabledFor(logging.INFO):
                reason = self._why_silent()
                with self._lock:
                    self._print(f"synthesis: no shard finished for {silent_s:.0f} s; {reason}")
