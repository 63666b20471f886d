"""Loss terms of a student.

Each returns one value per image, so that sums over the batches of all workers, divided by the number of images, give
the mean over all of them.
"""

import torch.nn.functional as F
from torch import Tensor


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence KL(teacher ‖ student) of the softened classes, in nats, times T² (Hinton et al., 2015, section 2).

    arXiv 1503.02531. The factor keeps the gradient's magnitude independent of T.

    Args:
        student, teacher: logits [B, classes].
        temperature: T, the divisor of both logits.

    Returns:
        [B]
    """
    target = F.log_softmax(teacher / temperature, dim=-1)
    answer = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(answer, target, reduction="none", log_target=True).sum(dim=-1) * temperature**2


def token_loss(student: Tensor, teacher: Tensor, num_tokens: Tensor) -> Tensor:
    """Mean squared difference of the final tokens.

    Args:
        student, teacher: tokens after the final norm [B, S, D], padded with zeros.
        num_tokens: number of tokens of each image [B], including prefix tokens.

    Returns:
        [B]
    """
    return (student - teacher).square().sum(dim=(1, 2)) / (num_tokens * student.shape[-1])


def hard_label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [B] of logits [B, classes] with labels int64 [B], in nats; 0 where the label is -1, unknown."""
    return F.cross_entropy(student, labels, reduction="none", ignore_index=-1)
