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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.circumstances import circumstances
from benchmarks.hallucination_arms import GRID, HALF, Arm, foreground_share, make_arms, rank_real_images
from benchmarks.hallucination_pictures import inverted_pictures, ranked_pictures
from benchmarks.hallucination_report import Trial, draw, page
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
from pipeline.inversion import Teacher, invert
from pipeline.inversion.patches import all_patches
from pipeline.models import LoadedModel, ModelConfig, load_model, save_model

_CPU = torch.device("cpu")
_STUDENT = StudentConfig(depth_pruned=[0, 3])


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
        StudentTrainer(
            config=config,
            digest="benchmark",
            student=student,
            answers=answers,
            images=share,
            labeled=None,
            group=Group(0, 1, _CPU),
        ).train()
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
    arms = make_arms(config.iterations, config.rebirth)
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
        pictures=ranked_pictures(held_out["matching"], kept["matching"]) | inverted_pictures(sets),
    )


def run(config: HallucinationConfig) -> dict[str, Any]:
    """Run all seeds and write the page and the figure.

    Returns:
        Where they are, and how many minutes it took.
    """
    # Taken first: they describe the code that runs, whatever is committed meanwhile.
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
