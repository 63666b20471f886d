"""Print training progress, from the metrics that the workers write."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pipeline import storage
from pipeline.distillation.loop import METRICS
from pipeline.errors import DatasetError
from pipeline.log import logger
from pipeline.progress import reporting


@contextmanager
def report_epochs(output: str, epochs: int, done_before: int) -> Iterator[None]:
    """Report each new epoch on standard error while the workers train, from the metrics that they write."""
    if done_before:
        logger.info(f"distill: going on from epoch {done_before} of {epochs}")
    with reporting(partial(_report, output, epochs, done_before)):
        yield


def _report(output: str, epochs: int, last_epoch: int, ticks: Iterator[None]) -> None:
    uri = storage.join(output, METRICS)
    for _ in ticks:
        try:
            row = json.loads(storage.read_bytes(uri).splitlines()[-1])
        except (DatasetError, IndexError):
            # Not written yet.
            continue
        if row["epoch"] > last_epoch:
            last_epoch = row["epoch"]
            top1 = f", held-out top-1 {row['top1']:.1f}%" if "top1" in row else ""
            rate = row["images"] / max(row["seconds"], 1e-9)
            left = (epochs - last_epoch) * row["seconds"]
            progress = f"loss {row['loss']:.4f}{top1}, {rate:.0f} images/s, {left:.0f} s left"
            logger.info(f"distill: epoch {last_epoch}/{epochs}: {progress}")
