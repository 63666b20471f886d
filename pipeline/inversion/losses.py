"""Loss terms of the inversion.

Each returns a value per image, [B]; `published` ones couple the images of a batch, as the published code does. Images
are normalized float32 [B, C, H, W].
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The norm of a zero difference gets the subgradient 0 instead of 0/0.
_SMALLEST = 1e-12
# Kernel density estimate of the similarities, as published.
_BANDWIDTH, _POINTS = 0.01, 10
_ALL, _BUT_LAST, _BUT_FIRST = slice(None), slice(None, -1), slice(1, None)
# Each pixel and its neighbor to the right, below, and on the two diagonals.
_NEIGHBORS = (
    ((..., _ALL, _BUT_LAST), (..., _ALL, _BUT_FIRST)),
    ((..., _BUT_LAST, _ALL), (..., _BUT_FIRST, _ALL)),
    ((..., _BUT_LAST, _BUT_LAST), (..., _BUT_FIRST, _BUT_FIRST)),
    ((..., _BUT_FIRST, _BUT_LAST), (..., _BUT_LAST, _BUT_FIRST)),
)


def class_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [B] of logits [B, classes] against int64 [B]."""
    return F.cross_entropy(logits, targets, reduction="none")


def tv_l2(images: Tensor) -> Tensor:
    """L2 total variation [B]: summed norms of the four neighbor differences (DeepInversion; Yin et al., CVPR 2020)."""
    return _NeighborNorms.apply(images, 1)  # type: ignore[no-any-return]


def tv_l2_batch(images: Tensor) -> Tensor:
    """Published L2 total variation, a scalar: each norm is taken over the whole batch at once."""
    return _NeighborNorms.apply(images, 0).squeeze()  # type: ignore[no-any-return]


class _NeighborNorms(torch.autograd.Function):
    """Sum of the norms of the neighbor differences, with its gradient written by hand.

    Autograd would make a zero-filled copy of the images for each of the eight slices, three times the work of the rest;
    on a small teacher with few patches alive that is a quarter of a step.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, start_dim: int) -> Tensor:
        """Return the sums [B] for images [B, C, H, W] if `start_dim` is 1, or one sum [1] over the batch if it is 0."""
        dims = (1, 2, 3) if start_dim else (0, 1, 2, 3)
        norms = [torch.linalg.vector_norm(images[a] - images[b], dim=dims, keepdim=True) for a, b in _NEIGHBORS]
        ctx.save_for_backward(images, *norms)
        return torch.stack(norms).sum(dim=0).flatten()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        images, *norms = ctx.saved_tensors
        total = torch.zeros_like(images)
        for (a, b), norm in zip(_NEIGHBORS, norms, strict=True):
            slope = gradients[0].view_as(norm) / norm.clamp_min(_SMALLEST)
            difference = (images[a] - images[b]).mul_(slope)
            total[a] += difference
            total[b] -= difference
        return total, None


def tv_l1(images: Tensor) -> Tensor:
    """L1 total variation [B]: the mean absolute values of the four neighbor differences."""
    return sum((difference.abs().flatten(1).mean(dim=1) for difference in _differences(images)), images.new_zeros(()))


def pixel_l2(images: Tensor) -> Tensor:
    """Euclidean norm of the pixels [B]."""
    return _norm(images.flatten(1))


def pixel_losses(*, published: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the losses that read pixels only, each under the `InversionConfig` setting that holds its weight.

    Args:
        published: whether to take the total variation over the whole batch, as the published code does.
    """
    return {"tv_l2": tv_l2_batch if published else tv_l2, "tv_l1": tv_l1, "l2": pixel_l2}


def _differences(images: Tensor) -> list[Tensor]:
    return [images[a] - images[b] for a, b in _NEIGHBORS]


def _norm(rows: Tensor) -> Tensor:
    return rows.square().sum(dim=1).clamp_min(_SMALLEST**2).sqrt()


def patch_similarity_entropy(outputs: Sequence[Tensor]) -> Tensor:
    """Differential entropy [B] of the patches' pairwise cosine similarities, mean over blocks; to be maximized.

    The patches of noise all look alike; those of a picture are partly alike and partly not. The density is a Gaussian
    kernel estimate at ten values between the smallest and the largest similarity, normalized to integrate to 1
    (PSAQ-ViT; Li et al., ECCV 2022, section 3.2).

    Args:
        outputs: attention @ value of each block [B, K, d], mean over heads, without prefix tokens; K must be 2 or more.
    """
    return torch.stack([_similarity_entropy(output) for output in outputs]).mean(dim=0)


def _similarity_entropy(output: Tensor) -> Tensor:
    vectors = F.normalize(output.float(), dim=-1)
    row, column = torch.triu_indices(vectors.shape[1], vectors.shape[1], offset=1, device=vectors.device)
    similarities = (vectors @ vectors.transpose(1, 2))[:, row, column]
    low, high = similarities.amin(dim=1, keepdim=True), similarities.amax(dim=1, keepdim=True)
    grid = low + (high - low) * torch.linspace(0, 1, _POINTS, dtype=torch.float32, device=vectors.device)
    # Summed point by point, because [B, points, pairs] would be the largest tensor of the run.
    density = torch.stack([_kernel(point, similarities) for point in grid.split(1, dim=1)], dim=1)
    # Ten points miss or double-count much of a narrow kernel's mass. Without normalization, patches that are all alike
    # would get a high entropy.
    density = density / torch.trapezoid(density, grid, dim=1).clamp_min(_SMALLEST).unsqueeze(1)
    return torch.trapezoid(-density * density.clamp_min(_SMALLEST).log(), grid, dim=1)


def _kernel(point: Tensor, similarities: Tensor) -> Tensor:
    """Gaussian kernel density [B] at one point per image [B, 1]."""
    scaled = (point - similarities) / _BANDWIDTH
    return torch.exp(-0.5 * scaled.square()).mean(dim=1) / (_BANDWIDTH * (2 * torch.pi) ** 0.5)


class FeaturePrior:
    """Distance between the feature statistics of images and those that a CNN's BatchNorm layers recorded in training.

    Sum over layers of the norms of the differences in mean and variance (DeepInversion; Yin et al., CVPR 2020,
    equation 4). Statistics are taken per image; with `batch_statistics` over the batch, as published, and the images
    then depend on each other.

    Args:
        network: a CNN with BatchNorm2d layers that reads images with the teacher's normalization. It is frozen.

    Raises:
        ValueError: the network has no BatchNorm2d layer.
    """

    def __init__(self, network: nn.Module, *, batch_statistics: bool = False) -> None:
        self.network = network.eval().requires_grad_(False)
        self.batch_statistics = batch_statistics
        self._layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
        if not self._layers:
            raise ValueError(f"feature prior: {type(network).__name__} has no BatchNorm2d layer")

    def __call__(self, images: Tensor) -> Tensor:
        """Return the distance [B]; a scalar with batch statistics."""
        distances: list[Tensor] = []
        handles = [layer.register_forward_pre_hook(self._measure(distances)) for layer in self._layers]
        try:
            self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(distances).sum(dim=0)

    def _measure(self, distances: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        dims = (0, 2, 3) if self.batch_statistics else (2, 3)

        def measure(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(args[0], dim=dims, correction=0)
            away = (mean - layer.running_mean).norm(dim=-1) + (variance - layer.running_var).norm(dim=-1)  # type: ignore[operator]
            distances.append(away)

        return measure


def js_divergence(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence [B], in nats, of the softened classes of two models' logits [B, classes]; 0 to ln 2."""
    a, b = (F.log_softmax(logits / temperature, dim=-1) for logits in (first, second))
    middle = torch.logsumexp(torch.stack([a, b]), dim=0) - math.log(2)
    return 0.5 * ((a.exp() * (a - middle)).sum(dim=-1) + (b.exp() * (b - middle)).sum(dim=-1))


class Disagreement:
    """Jensen-Shannon divergence between a student's predictions and the teacher's; to be maximized.

    Images on which they disagree are those the student has yet to learn (Adaptive DeepInversion; Yin et al., CVPR 2020,
    section 3.3, which minimizes 1 - JS).

    Args:
        student: a model that maps images [B, C, H, W] in the teacher's normalization and `keep_indices` int64 [B, K] to
            logits [B, classes]. It is frozen.
        reads_kept: whether the student reads only the patches of `keep_indices`; otherwise it is shown the image as it
            will be stored, with stopped patches in mean color.
        temperature: divisor of both models' logits; above 1 it softens both predictions.
    """

    def __init__(self, student: nn.Module, *, reads_kept: bool, temperature: float = 3.0) -> None:
        self.student = student.eval().requires_grad_(False)
        self.reads_kept = reads_kept
        self.temperature = temperature

    def __call__(self, teacher_logits: Tensor, images: Tensor, keep_indices: Tensor) -> Tensor:
        """Return the divergence [B]."""
        logits = self.student(images, keep_indices).float()
        return js_divergence(teacher_logits, logits, self.temperature)
