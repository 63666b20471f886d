"""Compare all ways of making images on handwritten digits: their cost, and what students and quantization gain.

    python -m benchmarks.methods

For each method and seed: 200 images of the demo's teacher, a W4A4 and a W4A3 calibration on them, and the demo's
student distilled on them, through the same code as the jobs, each in a process with one thread. Two processes run at a
time. Prints progress, and writes `benchmarks/results/methods.md` and `methods.json`. Seeds are of the images and of the
student; the teacher is one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import RESULTS, Bench, synthesis_config, training_config, write_dataset
from benchmarks.cells import Cell, measure_cells
from benchmarks.circumstances import circumstances, made_by
from benchmarks.markdown import table
from benchmarks.spread import spread, standard_error
from examples.digits.teacher import DigitsConfig, make_digits
from pipeline import storage
from pipeline.config import parse_config
from pipeline.distillation import distill
from pipeline.quantization import CalibrationConfig, calibrate

DENSE, SPARSE = "dense", "sparse"
# What images are good for, and the figure that says so.
COMPARED = {"student": "student_top1", "W4A4": "w4a4_top1", "W4A3": "w4a3_top1"}
# The sparse stage without its stops.
_REBIRTH = {"inversion.stop_steps": [], "inversion.stop_fractions": []}


def _end(confidence: float) -> dict[str, Any]:
    return {"inversion.adaptive_end": {"confidence": confidence, "hold_steps": 20}}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of making images.

    Attributes:
        name: in the table.
        stage: of the demo's configs that it starts from; None takes the real images.
        settings: what differs from it, by dotted name.
        against: the method whose student the adversarial term is to be unlike.
    """

    name: str
    stage: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None


METHODS = (
    Method(name="real images", stage=None),
    Method(name="noise", stage="noise"),
    Method(name=DENSE, stage="dense"),
    Method(name="dense, short", stage="dense", settings={"inversion.iterations": 60}),
    Method(name="dense, adaptive end at 0.9", stage="dense", settings=_end(0.9)),
    Method(name=SPARSE, stage="sparse"),
    Method(name="sparse, adaptive end at 0.9", stage="sparse", settings=_end(0.9)),
    Method(name="sparse, adaptive end at 0.5", stage="sparse", settings=_end(0.5)),
    Method(name="rebirth, v = 2", stage="sparse", settings={**_REBIRTH, "inversion.rebirth": 2}),
    Method(name="rebirth, v = 4", stage="sparse", settings={**_REBIRTH, "inversion.rebirth": 4}),
    Method(
        name="rebirth, v = 4, twice as long",
        stage="sparse",
        settings={**_REBIRTH, "inversion.rebirth": 4, "inversion.iterations": 250},
    ),
    Method(name="sparse, by attention received", stage="sparse", settings={"inversion.ranking": "attention_received"}),
    Method(
        name="sparse, by gradient × activation", stage="sparse", settings={"inversion.ranking": "gradient_activation"}
    ),
    Method(name="sparse, patch similarity", stage="sparse", settings={"inversion.patch_similarity": 0.1}),
    Method(name="sparse, adversarial", stage="sparse", settings={"inversion.adversarial": 1.0}, against=SPARSE),
)


@dataclass(frozen=True)
class MethodFigures:
    """Results of one method with one seed: processor seconds and work per image, confidence of stored images."""

    seconds: float | None
    work: float | None
    mean_steps: float | None
    confidence: float | None
    w4a4_top1: float
    w4a3_top1: float
    before_top1: float
    student_top1: float


def measure(bench: Bench, method: Method, seed: int) -> MethodFigures:
    """Make a method's images with one seed and use them; in a process of its own."""
    name = f"{method.name.replace(' ', '-').replace(',', '')}-{seed}"
    for kind in ("images", "calibrate", "distill"):
        # What an earlier run left was made by another engine, perhaps.
        storage.remove_folder(bench.path(kind, name))
    made = {} if method.stage is None else _make_images(bench, method, bench.path("images", name), seed)
    images = bench.input("real.parquet") if method.stage is None else bench.path("images", name)
    shared = {"teacher.name": bench.teacher, "images": images, "labeled": bench.input("held_out.parquet")}
    quantized = {
        **shared,
        "output": bench.path("calibrate", name),
        "settings": [{"weights": 4, "activations": 4}, {"weights": 4, "activations": 3}],
        "formats": ["pt2"],
        "workers.size": 0,
    }
    artifacts = calibrate(parse_config(CalibrationConfig, bench.arguments("calibrate", quantized)))["artifacts"]
    student = distill(training_config(bench, {}, images, bench.path("distill", name), seed))
    return MethodFigures(
        seconds=made.get("seconds"),
        work=made.get("work"),
        mean_steps=made.get("mean_steps"),
        confidence=made.get("confidence"),
        w4a4_top1=artifacts[0]["top1"],
        w4a3_top1=artifacts[1]["top1"],
        before_top1=student["before_top1"],
        student_top1=student["top1"],
    )


def _make_images(bench: Bench, method: Method, output: str, seed: int) -> dict[str, float]:
    assert method.stage is not None
    settings = dict(method.settings)
    if method.against is not None:
        settings["student.name"] = f"local-dir:{bench.path('distill', f'{method.against}-{seed}', 'student', 'last')}"
    return write_dataset(synthesis_config(bench, method.stage, settings, output, seed))


def run(
    bench: Bench, methods: Sequence[Method], seeds: Sequence[int], processes: int
) -> dict[str, list[MethodFigures]]:
    """Figures by method, one a seed; those that build on another's student come second."""
    if not storage.exists(bench.input("held_out.parquet")):
        make_digits(parse_config(DigitsConfig, bench.arguments("digits", {"output": bench.input()})))
    waves = [
        [
            Cell(method.name, seed, partial(measure, bench, method, seed))
            for seed in seeds
            for method in methods
            if (method.against is not None) == builds_on_another
        ]
        for builds_on_another in (False, True)
    ]
    found = measure_cells("methods", waves, processes)
    return {method.name: [found[method.name, seed] for seed in seeds] for method in methods}


def report(figures: Mapping[str, Sequence[MethodFigures]], facts: Mapping[str, Any]) -> str:
    """The page: what was run, the table, and for each method what it changes against `sparse`, seed by seed."""
    dense = figures[DENSE]
    rows = [_row(name, found, dense) for name, found in figures.items()]
    before = statistics.fmean(found.before_top1 for found in dense)
    costs = ("images", "CPU s per image", "work", "steps", "confidence", "W4A4 top-1", "W4A3 top-1", "student top-1")
    differences = [
        (name, *_difference(found, figures[SPARSE]))
        for name, found in figures.items()
        if name not in (SPARSE, "real images")
    ]
    header = ("images", *(f"{what}: points above sparse" for what in COMPARED), "what that says")
    return "\n\n".join(
        [
            "# Methods, side by side",
            f"{made_by(facts)}, seeds {facts['seeds']}, in {facts['minutes']} minutes. "
            "Handwritten digits, the demo's teacher and settings, 200 images per set; means and standard deviations "
            "over the seeds of images and student. Seconds are of one processor core, whatever else ran. "
            "Work is counted (`pipeline/inversion/flops.py`), an image of `dense` being 1; it leaves out what losses "
            f"cost beside the teacher. The student scores {before:.1f} before it is trained.",
            table(costs, rows),
            "The same seeds, seed by seed, against `sparse`; a difference counts where its mean is more than two "
            "standard errors from zero.",
            table(header, differences),
        ]
    )


def _row(name: str, found: Sequence[MethodFigures], dense: Sequence[MethodFigures]) -> tuple[str, ...]:
    dense_work = statistics.fmean(f.work or 0.0 for f in dense)
    work = [f.work / dense_work for f in found if f.work is not None]
    return (
        name,
        _known([f.seconds for f in found], 3),
        f"{statistics.fmean(work):.2f}" if work else "–",
        _known([f.mean_steps for f in found], 0),
        _known([f.confidence for f in found], 3),
        _known([f.w4a4_top1 for f in found], 1),
        _known([f.w4a3_top1 for f in found], 1),
        _known([f.student_top1 for f in found], 1),
    )


def _difference(found: Sequence[MethodFigures], base: Sequence[MethodFigures]) -> tuple[str, ...]:
    """Points above the base of everything compared, and what they say."""
    points = {
        what: [getattr(a, name) - getattr(b, name) for a, b in zip(found, base, strict=True)]
        for what, name in COMPARED.items()
    }
    said = "; ".join(_verdict(what, differences) for what, differences in points.items())
    return *(spread(differences, 1, signed=True) for differences in points.values()), said


def _verdict(what: str, differences: Sequence[float]) -> str:
    mean = statistics.fmean(differences)
    if abs(mean) <= 2 * standard_error(differences):
        return f"{what} no different"
    return f"{what} {'better' if mean > 0 else 'worse'}"


def _known(values: Sequence[float | None], digits: int) -> str:
    """Return `spread` of what was measured; a dash if nothing was."""
    known = [value for value in values if value is not None]
    return spread(known, digits) if known else "–"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        default="runs/methods",
        help="of the teacher, which is kept, and of images and students, which are made anew",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", help="names of methods; dense and sparse always")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", default=str(RESULTS), help="folder for methods.md and methods.json")
    options = parser.parse_args(argv)
    wanted = [m for m in METHODS if options.only is None or m.name in (*options.only, DENSE, SPARSE)]
    started = time.monotonic()
    figures = run(Bench(folder=options.folder), wanted, options.seeds, options.processes)
    minutes = round((time.monotonic() - started) / 60)
    facts = circumstances("benchmarks.methods", torch.device("cpu"))
    facts |= {"seeds": options.seeds, "minutes": minutes, "threads": 1}
    results = Path(options.results)
    results.mkdir(parents=True, exist_ok=True)
    (results / "methods.md").write_text(report(figures, facts) + "\n")
    plain = {name: [vars(f) for f in found] for name, found in figures.items()}
    (results / "methods.json").write_text(json.dumps({**facts, "figures": plain}, indent=1) + "\n")


if __name__ == "__main__":
    main()
