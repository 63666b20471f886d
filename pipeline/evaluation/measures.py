"""Measure predictors: top-1, top-5, agreement, confusion and latency."""

import statistics
import time
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipeline.artifacts.opened import Predictor
from pipeline.errors import CheckpointError, DatasetError
from pipeline.evaluation.scores import Score, ScoreCounts


def measure_accuracy(predictors: Mapping[str, Predictor], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Score]:
    """Score several predictors in one pass over (images [B, C, H, W], labels [B]).

    Raises:
        DatasetError: there are no images.
        CheckpointError: a predictor has fewer classes than there are labels.
    """
    images, tallies = 0, {name: ScoreCounts() for name in predictors}
    for pixels, labels in batches:
        images += len(labels)
        first: Tensor | None = None
        for name, predict in predictors.items():
            logits = predict(pixels)
            tallies[name].correct += count_correct(logits, labels, name)
            predicted = logits.argmax(dim=1)
            first = predicted if first is None else first
            tallies[name].agreed += int((predicted == first).sum())
            tallies[name].confusion.update(zip(labels.tolist(), predicted.tolist(), strict=True))
    if not images:
        raise DatasetError("there are no labeled images to score on")
    return {name: tally.score(images) for name, tally in tallies.items()}


def count_correct(logits: Tensor, labels: Tensor, name: str = "the model") -> Tensor:
    """Count the labels [B] that are the first, and among the first five, of logits [B, classes]: int64 [2].

    Raises:
        CheckpointError: see `check_logits`.
    """
    check_logits(logits, labels, name)
    ranks = rank_labels(logits, labels)
    return torch.stack([(ranks == 0).sum(), (ranks < 5).sum()])


def check_logits(logits: Tensor, labels: Tensor, name: str) -> None:
    """Check that logits [B, classes] can be scored on labels [B].

    Raises:
        CheckpointError: a label is beyond the classes, or a logit is not finite: NaN would count as the largest.
    """
    if int(labels.max()) >= logits.shape[1]:
        raise CheckpointError(f"{name!r} has {logits.shape[1]} classes, a label is {int(labels.max())}")
    finite = logits.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise CheckpointError(f"{name!r} answers {int((~finite).sum())} of {len(labels)} images with NaN or infinity")


def rank_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of each label [B] among its logits [B, classes]: int64 [B], 0 where it is `argmax`.

    Equal logits, which are ordinary at few bits, are ranked by the number of their class, as `argmax` does; the order
    that `topk` puts them in is not defined.
    """
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(dim=1)


def measure_latency(predict: Predictor, images: Tensor, repeats: int = 9, most_seconds: float = 10.0) -> float:
    """Return milliseconds per image: the median over several forwards of the batch, after two that warm up.

    A large model is run fewer times, but at least three: no other forward begins once they have taken `most_seconds`.
    """
    seconds: list[float] = []
    while len(seconds) < repeats + 2 and (len(seconds) < 5 or sum(seconds) < most_seconds):
        start = time.perf_counter()
        predict(images)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[2:]) / len(images)
