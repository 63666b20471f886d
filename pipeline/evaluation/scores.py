"""Figures of an artifact on labeled images."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.report.confusion import Confusion


@dataclass(frozen=True)
class Score:
    """How an artifact answers labeled images.

    Attributes:
        images: number of images.
        top1, top5: percentage of images whose label is the first, or among the first five, of the predicted classes.
        agreement: percentage of images whose predicted class is the same as the first artifact's.
        confusion: (label, predicted class) → number of images.
    """

    images: int
    top1: float
    top5: float
    agreement: float
    confusion: Confusion


@dataclass
class ScoreCounts:
    """Running counts of one predictor: top-1 and top-5 hits, agreement with the first predictor, and confusion."""

    correct: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64))
    agreed: int = 0
    confusion: Counter[tuple[int, int]] = field(default_factory=Counter)

    def score(self, images: int) -> Score:
        top1, top5 = (100 * count / images for count in self.correct.tolist())
        return Score(images, top1, top5, 100 * self.agreed / images, self.confusion)
