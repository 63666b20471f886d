"""Kinds of inversion that `benchmarks/hallucination.py` compares, and the patches that each would keep."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shapes import Scenes
from examples.digits.teacher import normalize
from pipeline.inversion import InversionConfig, Teacher
from pipeline.inversion.patches import all_patches, split_best
from pipeline.vit.ranking import Ranking

HALF = (0.5, 0.5, 0.5)  # mean and deviation of `normalize`
# As the demo's: of 200 iterations 10, 20, 30, 50.
_STOPPED_AT, _STOP_FRACTIONS = (0.05, 0.1, 0.15, 0.25), [0.3] * 4
GRID = 8  # patches of `build_teacher`'s models on each side


class RandomRanking(Teacher):
    """A teacher that ranks patches at random, so that inversion stops any; its answers are its own.

    Args:
        model: as `Teacher`'s.
        seed: of the ranks.
    """

    def __init__(self, model: nn.Module, *, seed: int) -> None:
        super().__init__(model, mean=HALF, std=HALF)
        self._random = np.random.default_rng(seed)

    def look_and_rank(
        self, images: Tensor, keep_indices: Tensor, jitter: Tensor, ranking: Ranking, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores = self._random.random(keep_indices.shape, dtype=np.float32)
        return self.look(images, keep_indices, jitter), torch.from_numpy(scores)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A kind of inversion.

    Args:
        name: of it, in tables.
        inversion: its settings.
        at_random: patches are stopped at random instead of by the teacher's ranking.
    """

    name: str
    inversion: InversionConfig
    at_random: bool = False

    def teacher(self, model: nn.Module, seed: int) -> Teacher:
        """The model as it ranks patches here; `seed` of a choice at random."""
        return RandomRanking(model, seed=seed) if self.at_random else Teacher(model, mean=HALF, std=HALF)


def make_arms(iterations: int, rebirth: int) -> list[Arm]:
    """Settings as the demo's, in `examples/digits/configs`.

    Args:
        iterations: of an inversion.
        rebirth: sparse images that one trajectory of rebirth gives.
    """
    stop_steps = [round(share * iterations) for share in _STOPPED_AT]
    common: dict[str, Any] = {"iterations": iterations, "lr": 0.1, "flip": 0.0}
    dense = InversionConfig(**common, tv_l2=1.4e-3, stop_steps=[], stop_fractions=[])
    sparse = InversionConfig(**common, tv_l2=0.05, stop_steps=stop_steps, stop_fractions=_STOP_FRACTIONS)
    reborn = InversionConfig(**common, tv_l2=0.05, stop_steps=[], stop_fractions=[], rebirth=rebirth)
    return [
        Arm(name="dense", inversion=dense),
        Arm(name="sparse", inversion=sparse),
        Arm(name="random patches", inversion=sparse, at_random=True),
        Arm(name="rebirth", inversion=reborn),
        # The teacher's own ranking is the CLS token's attention.
        Arm(name="sparse by attention received", inversion=replace(sparse, ranking="attention_received")),
        Arm(name="sparse by gradient × activation", inversion=replace(sparse, ranking="gradient_activation")),
    ]


@torch.no_grad()
def chosen_patches(teacher: Teacher, images: Tensor, labels: Tensor, config: InversionConfig) -> list[Tensor]:
    """The patches [B, K] of given images that the schedule of an inversion lets survive, or detaches one after another.

    Each time the alive are ranked anew, as an inversion ranks those of its own images.

    Args:
        teacher: ranks them.
        images: normalized [B, C, H, W].
        labels: int64 [B].
        config: its schedule and ranking count.
    """
    alive, detached = all_patches(len(images), teacher.num_patches), []
    still, ranking = torch.zeros(len(images), 3, dtype=torch.int64), teacher.resolve_ranking(config)
    for change in config.changes(teacher.num_patches).values():
        _, scores = teacher.look_and_rank(images, alive, still, ranking, labels)
        chosen, others = split_best(alive, scores, change.count)
        if change.detaches:
            detached.append(chosen)
        alive = others if change.detaches else chosen
    return [*detached, alive]


def foreground_share(masks: np.ndarray, keep_indices: Tensor) -> float:
    """Percent of the kept patches' area that lies on the foreground, over all images.

    Args:
        masks: bool [B, H, W], true on the foreground.
        keep_indices: int64 [B, K].
    """
    side = masks.shape[1] // GRID
    shares = masks.reshape(-1, GRID, side, GRID, side).mean(axis=(2, 4)).reshape(len(masks), -1)
    return 100 * float(np.take_along_axis(shares, keep_indices.numpy(), axis=1).mean())


def rank_real_images(arms: Sequence[Arm], model: nn.Module, scenes: Scenes, seed: int) -> dict[str, Tensor]:
    """The patches [B, K] that each kind of inversion would keep of real images, by name; rebirth's by image as well."""
    kept: dict[str, Tensor] = {}
    images, labels = normalize(scenes.images), torch.from_numpy(scenes.labels)
    for arm in arms:
        parts = chosen_patches(arm.teacher(model, seed), images, labels, arm.inversion)
        for number, part in enumerate(parts, 1):
            kept[arm.name if len(parts) == 1 else f"{arm.name}, image {number} of {len(parts)}"] = part
    return kept
