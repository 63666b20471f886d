"""Does sparsity keep spurious backgrounds out of inversions? Tested where the truth is known.

    python -m benchmarks.hallucination

A teacher learns colored shapes on textured backgrounds (`benchmarks/shapes.py`), where in training the background
mostly goes with the class. Then, for each seed, with a dataset, a teacher, inversions and students of its own:

- The teacher ranks the patches of real images as an inversion ranks those of its own: how much of the patches that
  survive sparse inversion, or are detached by rebirth, or survive a choice at random, is foreground? The same for
  sparse inversion by two other rankings of patches.
- Students learn from inversions of each kind: how do they do on new images whose backgrounds go with the class, and
  on those whose backgrounds never do?

Writes `hallucination.md` and `hallucination.png` under `benchmarks/results`.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.circumstances import circumstances
from benchmarks.hallucination_report import BASE, Trial, draw, page
from benchmarks.shapes import CLASS_NAMES, Scenes, make_scenes
from examples.digits.teacher import DigitsConfig, build_teacher, normalize, top1, train_teacher
from pipeline.checks import check_range
from pipeline.config import parse_config, to_dict
from pipeline.distillation import DistillationConfig, StudentConfig
from pipeline.distillation.answers import Answers
from pipeline.distillation.batches import Images
from pipeline.distillation.descent import Group
from pipeline.distillation.images import MemoryImages
from pipeline.distillation.loop import StudentTrainer
from pipeline.distillation.order import Share
from pipeline.distillation.students import Student, build_student
from pipeline.errors import ConfigError, PipelineError
from pipeline.inversion import InversionConfig, Teacher, invert
from pipeline.inversion.patches import all_patches, split_best
from pipeline.models import LoadedModel, ModelConfig, load_model, save_model
from pipeline.vit.ranking import Ranking

HALF = (0.5, 0.5, 0.5)  # mean and deviation of `normalize`
# As the demo's: of 200 iterations 10, 20, 30, 50.
_STOPPED_AT, _STOP_FRACTIONS = (0.05, 0.1, 0.15, 0.25), [0.3] * 4
_CPU = torch.device("cpu")
_STUDENT = StudentConfig(depth_pruned=[0, 3])
GRID = 8  # patches of `build_teacher`'s models on each side


@dataclass(frozen=True, kw_only=True)
class HallucinationConfig:
    """Measure how much of a spurious background gets into inversions of each kind and from there into students.

    Args:
        output: local folder for the page and the figure.
        seeds: the whole experiment is run with each.
        workers: processes, of one thread each, that the seeds are shared out to; 1 is this process.
        matching: share of the teacher's training images whose background is their class's own.
        train_images: of the teacher.
        held_out: new images with matching backgrounds, and as many with swapped ones.
        teacher_epochs: passes over the training images.
        teacher_noise: standard deviation of the noise added to its training images, in [-1, 1].
        images_per_class: of each set that students learn from.
        iterations: of an inversion.
        rebirth: sparse images that one trajectory of rebirth gives.
        student_epochs: passes over such a set.
    """

    output: str = "benchmarks/results"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    workers: int = 2
    matching: float = 0.85
    train_images: int = 2000
    held_out: int = 600
    teacher_epochs: int = 30
    teacher_noise: float = 0.2
    images_per_class: int = 24
    iterations: int = 200
    rebirth: int = 4
    student_epochs: int = 60

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be one or more different numbers, not {self.seeds}")
        check_range("matching", self.matching, 0, 1)
        if self.images_per_class % self.rebirth:
            raise ConfigError(f"images_per_class {self.images_per_class} is no multiple of rebirth {self.rebirth}")


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


def make_arms(config: HallucinationConfig) -> list[Arm]:
    """Settings as the demo's, in `examples/digits/configs`."""
    stop_steps = [round(share * config.iterations) for share in _STOPPED_AT]
    common: dict[str, Any] = {"iterations": config.iterations, "lr": 0.1, "flip": 0.0}
    dense = InversionConfig(**common, tv_l2=1.4e-3, stop_steps=[], stop_fractions=[])
    sparse = InversionConfig(**common, tv_l2=0.05, stop_steps=stop_steps, stop_fractions=_STOP_FRACTIONS)
    rebirth = InversionConfig(**common, tv_l2=0.05, stop_steps=[], stop_fractions=[], rebirth=config.rebirth)
    return [
        Arm(name="dense", inversion=dense),
        Arm(name="sparse", inversion=sparse),
        Arm(name="random patches", inversion=sparse, at_random=True),
        Arm(name="rebirth", inversion=rebirth),
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


def invert_set(arm: Arm, model: nn.Module, per_class: int, seed: int) -> Images:
    """Invert the teacher into a set of images, 8-bit and filled as a stored dataset's are."""
    teacher = arm.teacher(model, seed)
    targets = torch.arange(len(CLASS_NAMES)).repeat(per_class // arm.inversion.images_per_run)
    seeds = [seed * 10_000 + number for number in range(len(targets))]
    harvests = invert(teacher, targets, arm.inversion, seeds=seeds).harvests
    filled = torch.cat([teacher.fill_stopped(harvest.images, harvest.keep_indices) for harvest in harvests])
    pixels = teacher.from_uint8(teacher.to_uint8(filled))
    keep_indices = torch.cat([harvest.keep_indices for harvest in harvests])
    return _in_memory(pixels, targets.repeat(len(harvests)), keep_indices)


def real_images(scenes: Scenes, per_class: int) -> Images:
    """Return as many of the teacher's own training images as a synthetic set has, whole."""
    count = per_class * len(CLASS_NAMES)
    labels = torch.from_numpy(scenes.labels[:count])
    return _in_memory(normalize(scenes.images[:count]), labels, all_patches(count, GRID**2))


def _in_memory(pixels: Tensor, labels: Tensor, keep_indices: Tensor) -> Images:
    count, kept = keep_indices.shape
    ids = [f"{number:05d}" for number in range(count)]
    return Images(pixels.numpy(), labels.numpy(), keep_indices.numpy(), np.full(count, kept), ids)


def train_student(loaded: LoadedModel, images: Images, *, epochs: int, seed: int) -> Student:
    """Distil the teacher's first and last block on some images, as the demo does, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            teacher=ModelConfig(name=loaded.name),
            student=_STUDENT,
            images="in memory",
            output=folder,
            epochs=epochs,
            checkpoint_every=epochs,
            batch_size=50,
            token_weight=1.0,
            augment=None,
            seed=seed,
        )
        student = build_student(config.student, loaded, seed=seed)
        answers = Answers(Teacher(loaded.model, mean=HALF, std=HALF), with_tokens=True, dtype=torch.float32)
        answers.keep(images, _CPU, batch_size=config.batch_size, rank=0, world_size=1)
        share = MemoryImages(images, Share(batch_size=config.batch_size, seed=seed))
        StudentTrainer(config, "benchmark", student, answers, share, None, Group(0, 1, _CPU)).train()
    return student.eval()


def trained_teacher(config: HallucinationConfig, train: Scenes, held_out: Scenes, seed: int) -> LoadedModel:
    """Train the demo's kind of teacher on the scenes."""
    settings = DigitsConfig(output="in memory", epochs=config.teacher_epochs, noise=config.teacher_noise, seed=seed)
    untrained = build_teacher(seed, channels=3, num_classes=len(CLASS_NAMES))
    model, _ = train_teacher(untrained, settings, train.split(), held_out.split())
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, class_names=CLASS_NAMES, mean=HALF, std=HALF)
        return load_model(ModelConfig(name=f"local-dir:{folder}"))


def make_sets(
    arms: Sequence[Arm], per_class: int, model: nn.Module, train: Scenes, seed: int
) -> tuple[dict[str, Images], dict[str, float]]:
    """Return the images that students learn from, by arm, and the seconds that each inversion took."""
    sets, seconds = {}, {}
    for arm in arms:
        started = time.monotonic()
        sets[arm.name] = invert_set(arm, model, per_class, seed)
        seconds[arm.name] = time.monotonic() - started
    sets["real"] = real_images(train, per_class)
    return sets, seconds


def measure(config: HallucinationConfig, seed: int) -> Trial:
    """The whole experiment with one seed, which decides its scenes, teacher, inversions and students."""
    torch.set_num_threads(1)
    started = time.monotonic()
    train = make_scenes(config.train_images, matching=config.matching, seed=3 * seed)
    held_out = {
        "matching": make_scenes(config.held_out, matching=1.0, seed=3 * seed + 1),
        "swapped": make_scenes(config.held_out, matching=0.0, seed=3 * seed + 2),
    }

    def score(name: str, model: nn.Module) -> None:
        scores[name] = {backgrounds: top1(model, scenes.split()) for backgrounds, scenes in held_out.items()}
        message = ", ".join(f"{value:.1f}% {backgrounds}" for backgrounds, value in scores[name].items())
        print(f"seed {seed}, {time.monotonic() - started:.0f} s: {name}: {message}", file=sys.stderr, flush=True)

    scores: dict[str, dict[str, float]] = {}
    loaded = trained_teacher(config, train, held_out["matching"], seed)
    score("teacher", loaded.model)
    score("student before training", build_student(_STUDENT, loaded, seed=seed).eval())
    arms = make_arms(config)
    kept = {name: rank_real_images(arms, loaded.model, scenes, seed) for name, scenes in held_out.items()}
    sets, seconds = make_sets(arms, config.images_per_class, loaded.model, train, seed)
    for name, images in sets.items():
        score(f"student on {name}", train_student(loaded, images, epochs=config.student_epochs, seed=seed))
    return Trial(
        foreground={
            choice: {name: foreground_share(held_out[name].masks, kept[name][choice]) for name in held_out}
            for choice in kept["matching"]
        },
        top1=scores,
        seconds=seconds,
        pictures=_ranked_pictures(held_out["matching"], kept["matching"]) | _inverted_pictures(sets),
    )


def _ranked_pictures(scenes: Scenes, kept: dict[str, Tensor]) -> dict[str, list[np.ndarray]]:
    """The first real image of each class: whole, with the background white, and with stopped patches white."""
    first = range(len(CLASS_NAMES))
    images, masks = scenes.images, scenes.masks
    pictures = {"real image": [images[row] for row in first]}
    pictures["its foreground"] = [np.where(masks[row][..., None], images[row], 255).astype(np.uint8) for row in first]
    for choice, keep in kept.items():
        if choice != BASE:
            pictures[f"kept by {choice}"] = [_whiten(images[row], keep[row]) for row in first]
    return pictures


def _inverted_pictures(sets: dict[str, Images]) -> dict[str, list[np.ndarray]]:
    """The first inversion for each class of every kind, with stopped patches white."""
    pictures = {}
    for name, images in sets.items():
        if name != "real":
            pixels = np.round((images.pixels.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
            rows = [int(np.flatnonzero(images.labels == label)[0]) for label in range(len(CLASS_NAMES))]
            pictures[f"inverted, {name}"] = [
                _whiten(pixels[row], torch.from_numpy(images.keep_indices[row])) for row in rows
            ]
    return pictures


def _whiten(image: np.ndarray, keep_indices: Tensor) -> np.ndarray:
    """An image uint8 [H, W, C] with every patch outside `keep_indices` [K] white."""
    side = image.shape[0] // GRID
    kept = np.zeros(GRID**2, bool)
    kept[keep_indices.numpy()] = True
    mask = kept.reshape(GRID, GRID).repeat(side, axis=0).repeat(side, axis=1)
    return np.where(mask[..., None], image, 255).astype(np.uint8)


def run(config: HallucinationConfig) -> dict[str, Any]:
    """Run all seeds and write the page and the figure.

    Returns:
        Where they are, and how many minutes it took.
    """
    # Of the code that runs, whatever is committed meanwhile.
    measured_on = circumstances("benchmarks.hallucination", _CPU)
    started = time.monotonic()
    trial = partial(measure, config)
    if config.workers == 1:
        trials = list(map(trial, config.seeds))
    else:
        # Fresh processes: one that has run torch's threads cannot be forked safely.
        with ProcessPoolExecutor(config.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            trials = list(pool.map(trial, config.seeds))
    minutes = round((time.monotonic() - started) / 60, 1)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        **measured_on,
        "threads": f"1 in each of {config.workers} processes",
        "minutes": minutes,
        "settings": json.dumps(to_dict(config)),
    }
    (folder / "hallucination.md").write_text(page(trials, facts))
    (folder / "hallucination.png").write_bytes(draw(trials))
    return {"page": str(folder / "hallucination.md"), "minutes": minutes}


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse_config(HallucinationConfig, argv, prog="python -m benchmarks.hallucination")
        print(json.dumps(run(config)))
    except PipelineError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
