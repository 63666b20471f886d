"""Report the progress of a job while its workers run.

Of a calibration, workers count the images they have read, and this process prints the count.

Imports no torch, because a small Ray actor imports this module.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import ray.exceptions
from ray.actor import ActorHandle

from pipeline.log import logger

_INTERVAL_S = 2.0
_ANSWER_S = 10.0
Count = Callable[[int], None]


@contextmanager
def progress(job: str, num_images: int, *, on_workers: bool) -> Iterator[Count]:
    """Print on standard error how many images have been read so far.

    Args:
        job: name of the job, with which the lines begin.
        num_images: number of images to read.
        on_workers: whether other processes read them.

    Yields:
        A function to call with the number of images just read, in this or any process of the cluster.
    """
    logger.info(f"{job}: {num_images} image{'' if num_images == 1 else 's'} to read")
    counter: Any = ray.remote(num_cpus=0)(_Counter).remote() if on_workers else _Counter()
    with reporting(partial(_report, job, counter, num_images)):
        yield partial(_add, counter)


@contextmanager
def reporting(report: Callable[[Iterator[None]], None]) -> Iterator[None]:
    """Run a function beside the block, with an iterator that waits until there may be something new to report.

    The iterator yields every two seconds, and once more at the end of the block.
    """
    finished = threading.Event()
    thread = threading.Thread(target=report, args=(_ticks(finished),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _ticks(finished: threading.Event) -> Iterator[None]:
    over = False
    while not over:
        over = finished.wait(_INTERVAL_S)
        yield


class _Counter:
    """Images read so far."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, count: int) -> None:
        self._count += count

    def total(self) -> int:
        return self._count


def _add(counter: "_Counter | ActorHandle", count: int) -> None:
    if isinstance(counter, _Counter):
        counter.add(count)
    else:
        counter.add.remote(count)


def _total(counter: "_Counter | ActorHandle") -> int:
    return counter.total() if isinstance(counter, _Counter) else int(ray.get(counter.total.remote(), timeout=_ANSWER_S))  # type: ignore[arg-type]


def _report(job: str, counter: "_Counter | ActorHandle", num_images: int, ticks: Iterator[None]) -> None:
    started, printed = time.monotonic(), 0
    for _ in ticks:
        try:
            read = _total(counter)
        except ray.exceptions.RayError:
            # The cluster is shutting down; the job itself reports why.
            return
        if read > printed:
            printed = read
            if read > num_images:
                logger.info(f"{job}: {read} images read, some of them again")
                continue
            rate = read / (time.monotonic() - started)
            left = (num_images - read) / rate
            logger.info(f"{job}: {read} of {num_images} images, {rate:.3g} images/s, {left:.0f} s left")
