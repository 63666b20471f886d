"""Wait for the parts of a dataset while a process of its own makes them."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from pipeline import storage
from pipeline.cluster import start_here
from pipeline.dataset import store
from pipeline.errors import MissingImagesError
from pipeline.outputs.owners import NOT_SHARED
from pipeline.synthesis.exit_code import ExitCode
from pipeline.synthesis.input_synthesis import ImagesToMake

_LOOK_EVERY_S = 1.0
# A listing costs more than a look at a file, and failures are few.
_LIST_EVERY_S = 10.0
# Seconds before a last look, for stores that show a new file only after a moment.
_LAST_LOOK_S = 3.0


@dataclass(frozen=True)
class PartArrivals:
    """The parts of a dataset that is being made; see `pipeline.dataset.source.Arrivals`.

    Attributes:
        output: folder of the dataset.
        ending: an `ExitCode` actor, which is told how the synthesis ended.
        failed_before: shard id → failure record that was there before the synthesis began. The synthesis tries these
            shards again.
    """

    output: str
    ending: ActorHandle
    failed_before: Mapping[int, Mapping[str, Any]]

    def wait_for(self, uri: str) -> None:
        """Wait until a part is there.

        Raises:
            MissingImagesError: its shard or another one failed, or the synthesis has ended without it.
            DatasetError: the store kept failing to answer.
        """
        looked_at = time.monotonic()
        while not _exists(uri):
            if time.monotonic() - looked_at >= _LIST_EVERY_S:
                self.check_failed()
                looked_at = time.monotonic()
            exit_code = cast(int | None, ray.get(self.ending.get.remote()))
            if exit_code is None:
                time.sleep(_LOOK_EVERY_S)
                continue
            time.sleep(_LAST_LOOK_S)
            if not _exists(uri):
                self.check_failed()
                raise MissingImagesError(self.describe_end(exit_code, uri))

    def check_failed(self) -> None:
        """Check that no shard failed since the synthesis began.

        Raises:
            MissingImagesError: a shard failed; the message says why.
            DatasetError: the store kept failing to answer.
        """
        shard_ids = storage.with_retries(lambda: store.failed_shards(self.output))
        for shard_id, record in store.find_failures(self.output, shard_ids).items():
            if record != self.failed_before.get(shard_id):
                raise MissingImagesError(
                    f"shard {shard_id} of {self.output!r} failed: {record['reason']}. Run this job again to retry it, "
                    "or make the other shards with jobs.synthesize and train on that dataset, in another output, with "
                    "allow_incomplete"
                )

    def describe_end(self, exit_code: int, missing: str | None = None) -> str:
        """Say that the synthesis ended too early, and what to do."""
        if not exit_code:
            return f"the images of {self.output!r} are made, but {missing!r} is not there: {NOT_SHARED}"
        without = "" if missing is None else f" and without {missing!r}"
        return (
            f"the synthesis of {self.output!r} ended with exit code {exit_code}{without}; its log lines say why. Run "
            "this job again to make the rest, or train on the dataset as it is, in another output, with "
            "allow_incomplete"
        )


def _exists(uri: str) -> bool:
    return storage.with_retries(lambda: storage.exists(uri))


@contextmanager
def expected_parts(to_make: ImagesToMake | None) -> Iterator[PartArrivals | None]:
    """Let readers wait for the missing parts of a dataset within the context; the cluster must be joined.

    Args:
        to_make: images that a synthesis is to make; None if there is none.

    Yields:
        What readers wait with; None where all images are there.

    Raises:
        DatasetError: the output cannot be read.
    """
    if to_make is None:
        yield None
        return
    plan = to_make.plan
    # Since it was planned, another run may have made some, or failed to.
    progress = store.read_progress(plan.config.output, len(plan.shards), plan.digest)
    if progress.complete:
        yield None
        return
    arrivals = PartArrivals(plan.config.output, start_here(ExitCode), progress.failed)
    try:
        yield arrivals
    finally:
        ray.kill(arrivals.ending)
