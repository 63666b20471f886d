"""Make images as the actors of a synthesis do, in this process, and count what they cost."""

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.digits.demo import STAGES
from pipeline import storage
from pipeline.config import parse_config
from pipeline.dataset import store
from pipeline.distillation import DistillationConfig
from pipeline.inversion.flops import TeacherShape, run_flops
from pipeline.synthesis import SynthesisConfig
from pipeline.synthesis.plan import plan_synthesis
from pipeline.synthesis.writer import PartWriter

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Files that a run of the benchmark keeps, and configs that it starts from.

    Attributes:
        folder: of everything.
        stages: configs that methods start from, and of calibration and distillation.
        shard_size: images inverted together.
    """

    folder: str
    stages: str = STAGES
    shard_size: int = 200

    def path(self, *names: str) -> str:
        return storage.join(self.folder, *names)

    def input(self, name: str = "") -> str:
        """Path of the teacher's folder or of a set of real images."""
        return self.path("inputs", name) if name else self.path("inputs")

    @property
    def teacher(self) -> str:
        return f"local-dir:{self.input('teacher')}"

    def arguments(self, stage: str, settings: Mapping[str, Any]) -> list[str]:
        """Command-line arguments of a job: a stage's config with some settings changed."""
        flags = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
        return ["--config", f"{self.stages}/{stage}.yaml", *(f"--{name}={value}" for name, value in flags.items())]


def synthesis_config(bench: Bench, stage: str, settings: Mapping[str, Any], output: str, seed: int) -> SynthesisConfig:
    """Return the config of a dataset.

    Args:
        bench: teacher and configs.
        stage: config to start from.
        settings: what differs from it, by dotted name.
        output: folder of the dataset.
        seed: of the images.
    """
    own = {"teacher.name": bench.teacher, "output": output, "seed": seed, "shard_size": bench.shard_size}
    return parse_config(SynthesisConfig, bench.arguments(stage, {**own, **settings}))


def training_config(
    bench: Bench, settings: Mapping[str, Any], images: str | Sequence[str], output: str, seed: int
) -> DistillationConfig:
    """Return the config of a student that is trained in this process and scored on the held-out images.

    Args:
        bench: teacher and configs.
        settings: what differs from the stage `distill`, by dotted name.
        images: to train on.
        output: folder of the student.
        seed: of the student.
    """
    own = {"teacher.name": bench.teacher, "images": images, "labeled": bench.input("held_out.parquet")}
    own |= {"output": output, "seed": seed, "workers.size": 0}
    return parse_config(DistillationConfig, bench.arguments("distill", {**own, **settings}))


def scored_at_the_end(epochs: int) -> dict[str, int]:
    """Return the settings of so many epochs with one scoring and one checkpoint, after the last."""
    return {"epochs": epochs, "score_every": epochs, "checkpoint_every": epochs}


def write_dataset(config: SynthesisConfig) -> dict[str, float]:
    """Write a dataset as the actors do, in this process.

    Returns:
        The `number` of images, and means per image: processor `seconds`, counted `work` in FLOP, `mean_steps`, and
        `confidence` of the teacher.
    """
    plan = plan_synthesis(config)
    store.write_manifest(config.output, plan.manifest)
    writer = PartWriter(plan.config, plan.digest)
    # CPU time: another process on the core does not count.
    started = time.process_time()
    outcomes = [writer.write_shard(**plan.shards[shard_id]) for shard_id in plan.to_do]
    seconds = time.process_time() - started
    assert not any(outcome.error for outcome in outcomes), outcomes
    num_images = sum(outcome.num_images for outcome in outcomes)
    taken = [steps for outcome in outcomes for steps in outcome.num_steps]
    phases = config.inversion.phases(writer.teacher.num_patches)
    shape = TeacherShape.of(writer.teacher)
    return {
        "number": num_images,
        "seconds": seconds / num_images,
        "work": sum(run_flops(shape, first_phases(phases, steps)).total for steps in taken) / num_images,
        "mean_steps": statistics.fmean(taken) if taken else 0.0,
        "confidence": sum(outcome.teacher_confidence * outcome.num_images for outcome in outcomes) / num_images,
    }


def first_phases(phases: Iterable[tuple[int, int]], num_steps: int) -> list[tuple[int, int]]:
    """The first steps of phases (number of steps, patches alive)."""
    short, left = [], num_steps
    for count, alive in phases:
        short.append((min(count, left), alive))
        left -= short[-1][0]
    return short
