"""Make a dataset in a process of its own, while a training reads each part as soon as it is there.

The parts are the buffer between the two: what was made is kept whatever becomes of the training, and a reader holds no
more images than it needs at a time. Writing a part takes a thousandth of the time that making it takes.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import environ
from threading import Thread
from typing import cast

import ray
from ray.actor import ActorHandle

from pipeline import storage
from pipeline.autoscaler import node_types
from pipeline.cluster import start_here
from pipeline.errors import IncompleteError
from pipeline.log import logger
from pipeline.synthesis.room import needs
from pipeline.synthesis.to_make import ImagesToMake

# A process of its own can be stopped at any time, and stops as every job does.
_COMMAND = (sys.executable, "-m", "jobs.synthesize")
_LOOK_EVERY_S = 1.0
# For stores that show a new file only after a moment.
_LAST_LOOK_S = 3.0
# A job that is stopped says what is left, and leaves the cluster.
_STOP_S = 60.0


class _Ending:
    """How a synthesis ended, for those who wait for its parts; an actor."""

    def __init__(self) -> None:
        self._exit_code: int | None = None

    def set(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def get(self) -> int | None:
        return self._exit_code


@dataclass(frozen=True)
class PartArrivals:
    """The parts of a dataset that is being made; see `pipeline.dataset.source.Arrivals`.

    Attributes:
        output: of the dataset.
        ending: an actor, `_Ending`.
    """

    output: str
    ending: ActorHandle

    def wait_for(self, uri: str) -> None:
        """Wait until a part is there.

        Raises:
            IncompleteError: the synthesis has ended without it.
        """
        while not storage.exists(uri):
            exit_code = cast(int | None, ray.get(self.ending.get.remote()))
            if exit_code is None:
                time.sleep(_LOOK_EVERY_S)
                continue
            time.sleep(_LAST_LOOK_S)
            if not storage.exists(uri):
                raise IncompleteError(self._describe(uri, exit_code))

    def _describe(self, uri: str, exit_code: int) -> str:
        if not exit_code:
            return (
                f"the images of {self.output!r} are made, and {uri!r} is not there: is that a folder of a single "
                "machine? Give an output that all machines share, such as s3://..."
            )
        return (
            f"the synthesis of {self.output!r} ended with exit code {exit_code} and without {uri!r}; its own lines say "
            "why. Run it again for the rest, or give the dataset as images with allow_incomplete"
        )


@contextmanager
def making(to_make: ImagesToMake, *, first: bool) -> Iterator[PartArrivals | None]:
    """Within it the missing images of a dataset are made, in a process that ends with it; the cluster must be joined.

    Args:
        to_make: the images.
        first: wait until all are made before going on.

    Yields:
        What readers wait for parts with; None where all are there.
    """
    if to_make.plan.progress.complete:
        yield None
        return
    arrivals = PartArrivals(to_make.plan.config.output, start_here(_Ending))
    process = _start(to_make.path)
    watch = Thread(target=_watch, args=(process, arrivals.ending), daemon=True)
    watch.start()
    try:
        if first:
            # Its lines say how far it is.
            process.wait()
        yield arrivals
        # All parts are there; what people look at may not be.
        process.wait()
    finally:
        _stop(process)
        watch.join()
        ray.kill(arrivals.ending)


def _start(path: str) -> subprocess.Popen[bytes]:
    """Start the synthesis on the cluster of this process. Its standard output, one line of results, is not ours."""
    address = ray.get_runtime_context().gcs_address
    command = [*_COMMAND, "--config", path, "--shard_order", "shuffled"]
    return subprocess.Popen(command, env={**environ, "RAY_ADDRESS": address}, stdout=subprocess.DEVNULL)


def _watch(process: subprocess.Popen[bytes], ending: ActorHandle) -> None:
    ray.get(ending.set.remote(process.wait()))


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def has_room(to_make: ImagesToMake, others: Mapping[str, float], *, fixed_size: bool) -> bool:
    """Return whether the cluster has room for the whole pool of a synthesis and for others; say so where it does not.

    Args:
        to_make: the images of a training.
        others: resources of what is to run beside it, by Ray's names.
        fixed_size: whether no more nodes can join the cluster.
    """
    if not fixed_size and node_types() != []:
        return True
    plan, pool = to_make.plan, to_make.plan.config.pool
    actor = needs(pool)
    name, each = ("GPU", actor.num_gpus) if actor.on_gpu else ("CPU", float(actor.num_cpus))
    actors = min(pool.max_size, len(plan.to_do))
    there, taken = ray.cluster_resources().get(name, 0.0), others.get(name, 0.0)
    if actors * each + taken <= there:
        return True
    fitting = int((there - taken) // each)
    advice = f": with pool.max_size {fitting} both go on at once" if fitting >= pool.min_size else ""
    logger.info(
        f"{actors} actors of the synthesis and the workers of the training need {actors * each + taken:g} {name}s, and "
        f"there are {there:g}: the training begins when all images are made{advice}"
    )
    return False
