"""Score stored images with the teacher."""

import torch
from torch import Tensor

from pipeline.inversion import losses
from pipeline.inversion.teacher import AnyTeacher


@torch.no_grad()
def score(teacher: AnyTeacher, pixels: Tensor, keep_indices: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score stored images with the teacher, which reads its CLS token and the kept patches.

    Args:
        pixels: uint8 [B, H, W, C], images as they are stored.
        keep_indices: int64 [B, K], the patches to read.
        targets: int64 [B], the class that each image was inverted for.

    Returns:
        Class loss [B], probability of the target [B], and predicted class int64 [B].
    """
    logits = teacher(teacher.from_uint8(pixels), keep_indices)
    probabilities = logits.softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return losses.class_loss(logits, targets), probabilities, logits.argmax(dim=1)
