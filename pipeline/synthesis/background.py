"""Make a dataset in a process of its own, while a training reads each part as soon as it is there.

The parts are the buffer between the two: what was made is kept whatever becomes of the training, and a reader holds no
more images than it needs at a time. Writing a part takes a thousandth of the time that making it takes.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import ray
import ray.exceptions
from ray.actor import ActorHandle

import pipeline
from pipeline.cluster.autoscaler import is_fixed_size, node_types
from pipeline.errors import MissingImagesError
from pipeline.log import logger
from pipeline.synthesis.arrivals import PartArrivals
from pipeline.synthesis.capacity import needs, reachable_seats, seats
from pipeline.synthesis.input_synthesis import ImagesToMake
from pipeline.synthesis.pool import pool_options

# A process of its own can be stopped at any time, and stops as every job does. Without the working folder in the
# module path: a user's own `jobs` may lie there.
_COMMAND = (sys.executable, "-P", "-m", "jobs.background_synthesis")
# A job that is stopped says what is left, and leaves the cluster.
_STOP_S = 60.0


@dataclass(frozen=True)
class Synthesis:
    """A synthesis that runs in a process of its own.

    Attributes:
        process: the process that it runs in.
        arrivals: what readers use to wait for its parts.
    """

    process: subprocess.Popen[bytes]
    arrivals: PartArrivals

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> None:
        """Wait until all images are made; its lines say how far it is.

        Raises:
            MissingImagesError: some could not be made.
        """
        exit_code = self.process.wait()
        if exit_code:
            self.arrivals.check_failed()
            raise MissingImagesError(self.arrivals.describe_end(exit_code))


@contextmanager
def background_synthesis(to_make: ImagesToMake | None, arrivals: PartArrivals | None) -> Iterator[Synthesis | None]:
    """Make the missing images of a dataset in a process that ends with the context; the cluster must be joined.

    Args:
        to_make: images to make; None if there are none.
        arrivals: what readers use to wait for the images, from `expected_parts`; None if all images are there.

    Yields:
        The synthesis; None where there is nothing to make.

    Raises:
        ConfigError: the cluster is too small for the pool.
    """
    if to_make is None or arrivals is None:
        yield None
        return
    # Raises in this process if the cluster is too small; the other process would only end with an exit code.
    pool_options(to_make.plan.config, max(1, len(to_make.plan.to_do)))
    process = _start(to_make.path)
    watch = Thread(target=_watch, args=(process, arrivals.ending), daemon=True)
    watch.start()
    try:
        yield Synthesis(process, arrivals)
        # The training has read all parts, but the report and the pictures may not be written yet.
        exit_code = process.wait()
        if exit_code:
            logger.warning(f"the synthesis of {arrivals.output!r} made all images and ended with exit code {exit_code}")
    finally:
        _stop(process)
        watch.join()


def _start(path: str) -> subprocess.Popen[bytes]:
    """Start the synthesis on the cluster of this process. Its standard output, one line of results, is not ours.

    Its standard input ends when this process is gone, for whatever reason, and it stops then. It runs in a session of
    its own, so that Ctrl-C reaches this process alone, which passes it on.
    """
    address = ray.get_runtime_context().gcs_address
    # The folder of this package, which holds `jobs` too, must be in the module path.
    paths = [str(Path(pipeline.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return subprocess.Popen(
        [*_COMMAND, "--config", path, "--shard_order", "shuffled", *_level()],
        env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _level() -> list[str]:
    """Return the flag with which a job prints as much as this process."""
    level = logger.getEffectiveLevel()
    return ["--quiet"] if level >= logging.WARNING else ["--verbose"] if level <= logging.DEBUG else []


def _watch(process: subprocess.Popen[bytes], ending: ActorHandle) -> None:
    exit_code = process.wait()
    # If the cluster is gone, so are those who wait for parts.
    with suppress(ray.exceptions.RayError):
        ray.get(ending.set.remote(exit_code))


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        logger.warning(f"the synthesis did not stop within {_STOP_S:g} s: it is killed")
    finally:
        # Also if a second Ctrl-C interrupted the wait.
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def has_room(to_make: ImagesToMake, others: Mapping[str, float]) -> bool:
    """Return whether the cluster has room for the pool of a synthesis and for others; say so where it does not.

    Where what an autoscaler can bring is not known, it is taken to be enough.

    Args:
        to_make: images of a training that are to be made.
        others: resources that will be taken beside the synthesis, by Ray's names.
    """
    plan, pool = to_make.plan, to_make.plan.config.pool
    actor, present = needs(pool), seats(pool)
    name, each = ("GPU", actor.num_gpus) if actor.on_gpu else ("CPU", float(actor.num_cpus))
    there = _most(name)
    # The pool may be smaller than the resources allow: `label_selector` may leave out nodes.
    reachable = reachable_seats(pool, present)
    actors, taken = int(min(pool.max_size, len(plan.to_do), reachable)), others.get(name, 0.0)
    if there is None or actors * each + taken <= there:
        return True
    fitting = int((there - taken) // each)
    advice = f" (with pool.max_size {fitting} both run at once)" if fitting >= pool.min_size else ""
    those = "1 actor" if actors == 1 else f"{actors} actors"
    logger.info(
        f"{those} of the synthesis and the training workers need {actors * each + taken:g} {name}s, the cluster has at "
        f"most {there:g}: the training starts once all images are made{advice}"
    )
    return False


def _most(name: str) -> float | None:
    """Return how much of a resource the cluster has, or will have at most; None if that is not known."""
    there = ray.cluster_resources().get(name, 0.0)
    if is_fixed_size():
        return there
    coming = node_types()
    if coming is None:
        return None
    return max(there, coming.most(lambda kind: kind.resources.get(name, 0.0)))
