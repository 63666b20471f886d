"""Print training progress, from the metrics that the workers write."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.log import logger
from pipeline.outputs.names import METRICS
from pipeline.tracking.tracker import Tracker
from pipeline.workers.progress import reporting

# Entries of a row that are not reported as figures.
_NO_FIGURES = ("epoch", "image_ids_checksum")


@contextmanager
def report_epochs(
    output: str, epochs: int, num_workers: int, place: tuple[int, int], tracker: Tracker
) -> Iterator[None]:
    """Report each new epoch while the workers train, from the metrics that they write.

    Args:
        output: folder of the run.
        epochs: number of epochs of the whole training.
        num_workers: number of workers that the training wants. A line tells of an epoch that ended with fewer.
        place: place of the checkpoint to go on from: (epochs done, steps of the next one).
        tracker: where the figures of every epoch are reported, including those that an earlier run may have failed to
            report.
    """
    done_before, steps = place
    if done_before or steps:
        within = f", step {steps} of the next one" if steps else ""
        logger.info(f"distill: there is a checkpoint of epoch {done_before} of {epochs}{within}")
    _drop_rows_after(output, done_before)
    with reporting(partial(_report, output, epochs, num_workers, done_before, tracker)):
        yield


def _drop_rows_after(output: str, epoch: int) -> None:
    """Drop metrics of epochs that come again, because a run ended after them and before their checkpoint."""
    uri = storage.join(output, METRICS)
    lines = storage.read_bytes(uri).splitlines(keepends=True) if storage.exists(uri) else []
    kept = [line for line in lines if json.loads(line)["epoch"] <= epoch]
    if len(kept) < len(lines):
        with storage.writing_to(output):
            storage.write_bytes(uri, b"".join(kept))


def _report(
    output: str, epochs: int, num_workers: int, last_epoch: int, tracker: Tracker, ticks: Iterator[None]
) -> None:
    uri, tracked = storage.join(output, METRICS), 0
    for _ in ticks:
        try:
            lines = storage.read_bytes(uri).splitlines()
            row = json.loads(lines[-1])
        except (DatasetError, IndexError):
            # The workers have not written any metrics yet.
            continue
        for new in map(json.loads, lines[tracked:]):
            tracker.add(new["epoch"], {name: new[name] for name in new if name not in _NO_FIGURES})
        tracked = max(tracked, len(lines))
        # The number can also go down: if the last checkpoint could not be used, epochs are done again.
        if row["epoch"] != last_epoch:
            last_epoch = row["epoch"]
            top1 = f", held-out top-1 {row['top1']:.1f}%" if "top1" in row else ""
            rate = row["images"] / max(row["seconds"], 1e-9)
            left = (epochs - last_epoch) * row["seconds"]
            # Rows of earlier versions do not state the number of workers.
            workers = row.get("workers", num_workers)
            fewer = f", {workers} of {num_workers} workers" if workers < num_workers else ""
            progress = f"loss {row['loss']:.4f}{top1}, {rate:.0f} images/s{fewer}, {left:.0f} s left"
            logger.info(f"distill: epoch {last_epoch}/{epochs}: {progress}")
