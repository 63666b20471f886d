"""Score a model on held-out images, which the workers share."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distillation.batches import DistillationBatch
from pipeline.distillation.descent import Group
from pipeline.distillation.opening import ImageSource
from pipeline.evaluation import check_logits
from pipeline.report.confusion import count_right


@dataclass(frozen=True)
class HeldOutScore:
    """How a model answers the held-out images of all workers.

    Attributes:
        confusion: (label, predicted class) → number of images.
    """

    confusion: dict[tuple[int, int], int]

    @property
    def top1(self) -> float:
        """Share in percent of the images whose label is the predicted class."""
        right, total = count_right(self.confusion)
        return 100 * right / total


@torch.no_grad()
def score_held_out(
    predict: Callable[[DistillationBatch], Tensor], images: ImageSource, group: Group, name: str
) -> HeldOutScore:
    """Score a model on the images of all workers; each reads its share, and all return the same.

    Args:
        predict: function that maps a batch to logits [B, classes].
        images: this worker's share of the held-out images.
        group: the workers that score together.
        name: name of the model, for errors.

    Raises:
        CheckpointError: a label is beyond the classes, or a logit is not finite.
    """
    pairs: Counter[tuple[int, int]] = Counter()
    for batch in images.in_order(group.device):
        logits = predict(batch)
        check_logits(logits, batch.labels, name)
        pairs.update(zip(batch.labels.tolist(), logits.argmax(dim=1).tolist(), strict=True))
    shares = group.gather(json.dumps([[*pair, count] for pair, count in pairs.items()]))
    total: Counter[tuple[int, int]] = Counter()
    for share in shares:
        total.update({(label, taken): count for label, taken, count in json.loads(share)})
    return HeldOutScore(dict(sorted(total.items())))
