"""A random model with its ranges, and forwards that take turns, for the benchmarks of artifacts."""

import statistics
import time
from collections.abc import Mapping, Sequence

import timm
import torch
from torch import Tensor, nn

from pipeline.artifacts.opened import Predictor
from pipeline.models import model_input_size
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.ranges import Ranges


def random_model(name: str) -> nn.Module:
    """Return a timm model of 100 classes with uniform random weights, whose products are large."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=100).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # As large as keeps the size of what passes through.
                parameter.uniform_(-1, 1).mul_((3 / parameter[0].numel()) ** 0.5)
    return model


def random_images(model: nn.Module, count: int) -> Tensor:
    """Return uniform noise in [-1, 1], [count, C, H, W]."""
    return 2 * torch.rand(count, *model_input_size(model)) - 1


def observe_ranges(model: nn.Module, images: Tensor) -> Ranges:
    """Return the activation ranges of a model on whole images, float32 [B, C, H, W], read together."""
    observer = RangeObserver(model, "linear")
    patches = torch.arange(model.patch_embed.num_patches).repeat(len(images), 1)  # type: ignore[union-attr]
    observer.observe([CalibrationBatch(images, patches, [str(row) for row in range(len(images))])])
    return observer.ranges()


def latencies(
    predictors: Mapping[str, Predictor], images: Tensor, batches: Sequence[int], rounds: int
) -> dict[str, dict[str, float]]:
    """Return milliseconds per image of each predictor at each batch size, the median over the rounds.

    The forwards take turns, so that a machine whose speed drifts slows all. One round more is not counted.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in predictors}
    for batch in batches:
        taken: dict[str, list[float]] = {name: [] for name in predictors}
        for number in range(rounds + 1):
            for name, predict in predictors.items():
                started = time.perf_counter()
                predict(images[:batch])
                if number:
                    taken[name].append(time.perf_counter() - started)
        for name, seconds in taken.items():
            found[name][str(batch)] = short(1000 * statistics.median(seconds) / batch)
    return found


def short(value: float) -> float:
    """Return a number with four digits that count."""
    return float(f"{value:.4g}")
