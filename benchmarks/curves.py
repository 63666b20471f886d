"""Measure how good a student gets with more images and with more steps of inversion, from dense and sparse images.

    python -m benchmarks.curves --testbed digits --seeds 3 --views 12000

Starts from the testbed's settings and multiplies the number of images, or that of steps with the steps at which patches
are stopped. Every student sees equally many views, so that fewer images are seen more often. Two processes of one
thread run at a time. What is measured is kept under `--folder`, and an interrupted run goes on. Writes
`curves-TESTBED.md`, `.json` and `.png`.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.bench import RESULTS, Bench, scored_at_the_end, synthesis_config, training_config, write_dataset
from benchmarks.cells import Cell, measure_cells
from benchmarks.circumstances import circumstances, made_by
from benchmarks.keeping import Figures, comparable_settings, kept_or_measured, rerun
from benchmarks.markdown import table
from benchmarks.spread import spread
from benchmarks.testbeds import INVERTED, TESTBEDS, Testbed, make_inputs
from pipeline.distillation import DistillationConfig, distill
from pipeline.synthesis import SynthesisConfig

IMAGES = (0.125, 0.25, 0.5, 1.0, 2.0)
STEPS = (0.125, 0.25, 0.5, 1.0)
_STUDENT = "pruned"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A set of images: the testbed's, with another number of images or steps.

    Attributes:
        arm: dense or sparse.
        images, steps: what the testbed's numbers of images and steps are multiplied by.
    """

    arm: str
    images: float = 1.0
    steps: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.arm}-images-{self.images:g}-steps-{self.steps:g}"


def points(images: Sequence[float] = IMAGES, steps: Sequence[float] = STEPS) -> list[Point]:
    """Return the points of both curves of each arm; the one that they share is there once."""
    return [
        point
        for arm in INVERTED
        for point in (
            *(Point(arm=arm, images=share) for share in images),
            *(Point(arm=arm, steps=share) for share in steps if share != 1),
        )
    ]


def synthesis_settings(config: SynthesisConfig, point: Point) -> dict[str, Any]:
    """Return what a point changes in the config of one of its datasets, by dotted name."""
    inversion = config.inversion
    return {
        "images_per_class": round(config.images_per_class * point.images),
        "inversion.iterations": round(inversion.iterations * point.steps),
        "inversion.stop_steps": [max(1, round(step * point.steps)) for step in inversion.stop_steps],
    }


def measure(bench: Bench, name: str, point: Point, seed: int, views: int | None) -> Figures:
    """Return the figures of a point, as kept or measured now; in a process of its own.

    Args:
        bench: files and configs.
        name: of the testbed.
        point: what images.
        seed: of images and student.
        views: that the student sees; by default as many as in the testbed.

    Returns:
        `number` of images, `steps`, counted `work` of all images in FLOP, and the student's `top1` in percent.
    """
    testbed = TESTBEDS[name]
    made = _syntheses(bench, testbed, point, seed)
    training = _training(bench, testbed, made, point, seed, views)

    def figures() -> Figures:
        facts = [rerun(config, write_dataset) for config in made]
        return {
            "number": sum(fact["number"] for fact in facts),
            "steps": statistics.fmean(fact["mean_steps"] for fact in facts),
            "work": sum(fact["work"] * fact["number"] for fact in facts),
            "top1": rerun(training, distill)["top1"],
        }

    return kept_or_measured(bench, f"{point.name}-{seed}", comparable_settings(training, made), figures)


def _syntheses(bench: Bench, testbed: Testbed, point: Point, seed: int) -> list[SynthesisConfig]:
    found = []
    for stage in testbed.datasets_of(point.arm):
        output = bench.path("images", f"{stage}-{point.name}-{seed}")
        as_is = synthesis_config(bench, stage, {}, output, seed)
        found.append(synthesis_config(bench, stage, synthesis_settings(as_is, point), output, seed))
    return found


def _training(
    bench: Bench, testbed: Testbed, made: Sequence[SynthesisConfig], point: Point, seed: int, views: int | None
) -> DistillationConfig:
    images, output = [config.output for config in made], bench.path("distill", f"{point.name}-{seed}")
    settings = testbed.students[_STUDENT]
    as_is = training_config(bench, settings, images, output, seed)
    base = _count(testbed, _syntheses(bench, testbed, Point(arm=point.arm), seed))
    wanted = views or testbed.views or as_is.epochs * base
    once = scored_at_the_end(max(1, round(wanted / _count(testbed, made))))
    return training_config(bench, {**settings, **once}, images, output, seed)


def _count(testbed: Testbed, made: Sequence[SynthesisConfig]) -> int:
    """Return the number of images of some datasets."""
    return sum(config.images_per_class for config in made) * testbed.num_classes


def run(
    bench: Bench, name: str, found: Sequence[Point], seeds: Sequence[int], processes: int, views: int | None
) -> dict[Point, list[Figures]]:
    """Return the figures of each point, one for each seed."""
    cells = [
        Cell(point.name, seed, partial(measure, bench, name, point, seed, views)) for seed in seeds for point in found
    ]
    measured = measure_cells("curves", [cells], processes)
    return {point: [measured[point.name, seed] for seed in seeds] for point in found}


def page(figures: Mapping[Point, Sequence[Figures]], facts: Mapping[str, Any]) -> str:
    """Return the page: what was run, and a table of all points."""
    made = (
        f"{made_by(facts)}, in {facts['minutes']} minutes. Means and standard deviations over {facts['seeds']} seeds "
        "of images and students. Work is counted, of all images together, in FLOP. Top-1 in percent of real held-out "
        "images."
    )
    rows = [
        (
            point.arm,
            f"{found[0]['number']:g}",
            f"{found[0]['steps']:g}",
            f"{statistics.fmean(figure['work'] for figure in found):.3g}",
            spread([figure["top1"] for figure in found], 2),
        )
        for point, found in figures.items()
    ]
    header = ("images", "number", "steps", "work", "student")
    title = f"# Students by number of images and of steps, on {facts['testbed']}"
    return "\n\n".join([title, made, f"![The same as curves](curves-{facts['testbed']}.png)", table(header, rows)])


def draw(figures: Mapping[Point, Sequence[Figures]]) -> Figure:
    """Draw top-1 by number of images, by steps, and by work; bars show the standard deviation over the seeds."""
    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    by_images, by_steps, by_work = figure.subplots(1, 3, sharey=True)
    for arm, color in zip(INVERTED, ("tab:blue", "tab:orange"), strict=True):
        own = {point: found for point, found in figures.items() if point.arm == arm}
        images = [found for point, found in own.items() if point.steps == 1]
        steps = [found for point, found in own.items() if point.images == 1]
        _line(by_images, arm, images, "number", color=color)
        _line(by_steps, arm, steps, "steps", color=color)
        _line(by_work, f"{arm}, more images", images, "work", color=color)
        _line(by_work, f"{arm}, more steps", steps, "work", color=color, linestyle="--")
    by_images.set(xlabel="images", ylabel="student, top-1 %")
    by_steps.set(xlabel="steps of inversion")
    by_work.set(xlabel="FLOP of all images")
    for axes in (by_images, by_steps, by_work):
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
    for axes in (by_images, by_steps):
        # Ticks at round numbers of a single decade would lie on each other.
        axes.minorticks_off()
        values = sorted({float(x) for line in axes.containers for x in line[0].get_xdata()})
        shown = [x for x, next_one in zip(values, [*values[1:], math.inf], strict=True) if next_one / x > 1.3]
        axes.set_xticks(shown, [f"{x:g}" for x in shown])
    return figure


def _line(
    axes: Axes, name: str, found: Sequence[Sequence[Figures]], x: str, *, color: str, linestyle: str = "-"
) -> None:
    ordered = sorted(found, key=lambda figures: figures[0][x])
    xs = [statistics.fmean(figure[x] for figure in figures) for figures in ordered]
    ys = [[figure["top1"] for figure in figures] for figures in ordered]
    means = [statistics.fmean(values) for values in ys]
    deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in ys]
    axes.errorbar(xs, means, deviations, label=name, marker="o", capsize=3, color=color, linestyle=linestyle)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    able = sorted(name for name, testbed in TESTBEDS.items() if _STUDENT in testbed.students)
    parser.add_argument("--testbed", choices=able, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--views", type=int, help="views that each student sees; by default as many as in the testbed")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, as for benchmarks.cifar")
    parser.add_argument("--folder", help="what is measured is kept there; by default runs/curves/TESTBED")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for page, figures and picture")
    options = parser.parse_args(argv)
    testbed = TESTBEDS[options.testbed]
    bench = Bench(folder=options.folder or f"runs/curves/{testbed.name}", stages=testbed.stages)
    started = time.monotonic()
    make_inputs(testbed, bench, options.data)
    figures = run(bench, testbed.name, points(), range(options.seeds), options.processes, options.views)
    facts = circumstances("benchmarks.curves", torch.device("cpu"))
    facts |= {"testbed": testbed.name, "seeds": options.seeds}
    facts["minutes"] = round((time.monotonic() - started) / 60)
    options.results.mkdir(parents=True, exist_ok=True)
    start = options.results / f"curves-{testbed.name}"
    start.with_suffix(".md").write_text(page(figures, facts) + "\n")
    content = {**facts, "figures": {point.name: found for point, found in figures.items()}}
    start.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    # The same figures give the same bytes.
    draw(figures).savefig(start.with_suffix(".png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
