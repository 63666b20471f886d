"""Measure a quantized model on images held back from quantization-aware distillation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distillation.answers import Answers
from pipeline.distillation.batches import DistillationBatch
from pipeline.distillation.descent import Group
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.sensitivity import disagreement, divergence


@dataclass(frozen=True)
class HeldBack:
    """This worker's share of the held-back images, with the float teacher's answers.

    Attributes:
        batches: batches of images as they are, without random views; docs/methods.md says why.
        answers: the teacher's logits [B, classes] for each batch.
        group: the workers of the training.
    """

    batches: Sequence[DistillationBatch]
    answers: Sequence[Tensor]
    group: Group

    @torch.no_grad()
    def measure(self, model: Callable[[DistillationBatch], Tensor]) -> dict[str, float]:
        """Compare a model with the teacher, over the images of all workers.

        Args:
            model: function that returns the logits [B, classes] of a batch.

        Returns:
            `divergence`: mean Kullback-Leibler divergence of the answers from the teacher's, in nats; `disagreement`:
            percentage of the images that are put into another class than by the teacher.
        """
        sums = torch.zeros(3, dtype=torch.float64, device=self.group.device)
        for batch, answers in zip(self.batches, self.answers, strict=True):
            logits = model(batch)
            means = divergence(logits, answers), disagreement(logits, answers), 1.0
            sums += len(logits) * sums.new_tensor(means)
        diverges, disagrees, count = self.group.sum(sums).tolist()
        return {"divergence": diverges / count, "disagreement": disagrees / count}


def hold_back(read: Sequence[CalibrationBatch], answers: Answers, group: Group, *, batch_size: int) -> HeldBack:
    """Let the teacher answer a worker's share of the images.

    Args:
        read: all held-back images.
        answers: the frozen teacher, as a function of a batch that returns its logits and, if asked for, its tokens.
        group: the workers of the training.
        batch_size: number of images per forward pass, of all workers together.
    """
    share = slice(group.rank, None, group.world_size)
    own = [batch.take(share) for each in read for batch in _split(each, group.device, batch_size)]
    batches = [batch for batch in own if len(batch.pixels)]
    return HeldBack(batches, [answers(batch)[0] for batch in batches], group)


def _split(read: CalibrationBatch, device: torch.device, batch_size: int) -> Iterator[DistillationBatch]:
    """Yield the images in batches on the device; all of them keep equally many patches."""
    for start in range(0, len(read.images), batch_size):
        rows = slice(start, start + batch_size)
        keep = read.keep_indices[rows].to(device)
        labels, num_kept = keep.new_full((len(keep),), -1), keep.new_full((len(keep),), keep.shape[1])
        yield DistillationBatch(read.images[rows].to(device), labels, keep, num_kept, read.image_ids[rows])
