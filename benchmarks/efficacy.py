"""Measure whether synthetic images serve as well as real ones: quantization and students on real held-out images.

    python -m benchmarks.efficacy --testbed digits --seeds 5

Makes sparse and dense images and noise with each seed, and takes real images, which are the same for all seeds: as many
on digits; fewer on CIFAR-10, where students see equally many views of each kind. Calibrates at several bit widths and
trains students on each, by the same code and settings as the jobs. Two processes of one thread run at a time. What is
measured is kept under `--folder`: an interrupted run goes on, and what other settings made is measured again. Writes
`efficacy-TESTBED.md` and `.json` and prints one JSON line with the goals.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import RESULTS, Bench, scored_at_the_end, synthesis_config, training_config, write_dataset
from benchmarks.cells import Cell, measure_cells
from benchmarks.circumstances import circumstances
from benchmarks.efficacy_report import goals, page
from benchmarks.keeping import Figures, comparable_settings, kept_or_measured, rerun
from benchmarks.testbeds import INVERTED, MIXED, TESTBEDS, Testbed, make_inputs
from pipeline import storage
from pipeline.config import parse_config
from pipeline.dataset.discovery import find_source
from pipeline.distillation import distill
from pipeline.outputs import names
from pipeline.quantization import CalibrationConfig, calibrate, range_error
from pipeline.synthesis import SynthesisConfig

REAL, REFERENCE = "real", "reference"
SYNTHETIC = (*INVERTED, "noise")
ARMS = (REAL, *SYNTHETIC)
QUANTIZED, RANGES = "quantized", "ranges"


def measure(bench: Bench, testbed: str, part: str, arm: str, seed: int) -> Figures:
    """Return the figures of one part of an arm, as kept or measured now; in a process of its own.

    Args:
        bench: files and configs.
        testbed: its name.
        part: `images`, `ranges`, `quantized`, or a kind of student.
        arm: what images.
        seed: of images and student.
    """
    if part == "images":
        return _make(bench, TESTBEDS[testbed], arm, seed)
    if part == RANGES:
        return _compare_ranges(bench, TESTBEDS[testbed], arm, seed)
    if part == QUANTIZED:
        return _quantize(bench, TESTBEDS[testbed], arm, seed)
    return _train(bench, TESTBEDS[testbed], part, arm, seed)


def _make(bench: Bench, testbed: Testbed, arm: str, seed: int) -> Figures:
    configs = _syntheses(bench, testbed, arm, seed)
    settings = [comparable_settings(config) for config in configs]

    def figures() -> Figures:
        return _mean_figures([rerun(config, write_dataset) for config in configs])

    return kept_or_measured(bench, f"images-{arm}-{seed}", settings, figures)


def _mean_figures(datasets: Sequence[Figures]) -> Figures:
    """Return the number of images in some datasets, and the means over all of them."""
    number = sum(figures["number"] for figures in datasets)
    weighted = {
        name: sum(figures[name] * figures["number"] for figures in datasets) / number
        for name in datasets[0]
        if name != "number"
    }
    return {"number": number, **weighted}


def _syntheses(bench: Bench, testbed: Testbed, arm: str, seed: int) -> list[SynthesisConfig]:
    return [
        synthesis_config(bench, stage, {}, output, seed)
        for stage, output in zip(testbed.datasets_of(arm), _images(bench, testbed, arm, seed), strict=True)
    ]


def _images(bench: Bench, testbed: Testbed, arm: str, seed: int) -> list[str]:
    if arm in (REAL, REFERENCE):
        return [bench.input(f"{arm}.parquet")]
    return [bench.path("images", f"{stage}-{seed}") for stage in testbed.datasets_of(arm)]


def _quantize(bench: Bench, testbed: Testbed, arm: str, seed: int) -> Figures:
    config = _calibration(bench, testbed, arm, seed, QUANTIZED)

    def figures() -> Figures:
        rows = rerun(config, calibrate)["artifacts"]
        return {f"W{row['weights']}A{row['activations']}": row["top1"] for row in rows}

    return kept_or_measured(
        bench, f"{QUANTIZED}-{arm}-{seed}", _with_images(bench, testbed, config, arm, seed), figures
    )


def _compare_ranges(bench: Bench, testbed: Testbed, arm: str, seed: int) -> Figures:
    """Compare ranges of the model as it is with those on real images that no arm calibrates on."""
    config = _calibration(bench, testbed, arm, seed, RANGES)

    def figures() -> Figures:
        ranges = storage.read_json(rerun(config, calibrate)["ranges"])
        return {"range_error": range_error(ranges, _calibrate_reference(bench, testbed)[0])}

    return kept_or_measured(bench, f"{RANGES}-{arm}-{seed}", _with_images(bench, testbed, config, arm, seed), figures)


def _calibration(bench: Bench, testbed: Testbed, arm: str, seed: int, part: str) -> CalibrationConfig:
    settings: dict[str, Any] = {"settings": [{"weights": 8, "activations": 8}]}
    if part == QUANTIZED:
        settings = {"settings": testbed.widths, **testbed.calibration}
    elif arm != REFERENCE:
        # Ranges need no scores; with the reference's, the float model is scored.
        settings["labeled"] = None
    own = {
        "teacher.name": bench.teacher,
        "images": _images(bench, testbed, arm, seed),
        "labeled": bench.input("held_out.parquet"),
        "output": bench.path("calibrate", f"{part}-{arm}-{seed}"),
        "formats": ["pt2"],
        "workers.size": 0,
    }
    return parse_config(CalibrationConfig, bench.arguments("calibrate", {**own, **settings}))


def _calibrate_reference(bench: Bench, testbed: Testbed) -> tuple[dict[str, Any], float]:
    """Calibrate on the reference images, once; return the ranges and the float model's top-1."""
    config = _calibration(bench, testbed, REFERENCE, 0, RANGES)
    if not storage.exists(storage.join(config.output, names.REPORT)):
        calibrate(config)
    ranges, report = (storage.read_json(storage.join(config.output, name)) for name in (names.RANGES, names.REPORT))
    return ranges, report["fp32"][0]["top1"]


def _train(bench: Bench, testbed: Testbed, student: str, arm: str, seed: int) -> Figures:
    settings = testbed.students[student]
    if (views := testbed.views_of(arm)) is not None:
        settings = {**scored_at_the_end(views // _count(bench, testbed, arm, seed)), **settings}
    output = bench.path("distill", f"{student}-{arm}-{seed}")
    config = training_config(bench, settings, _images(bench, testbed, arm, seed), output, seed)

    def figures() -> Figures:
        result = rerun(config, distill)
        return {"before": result["before_top1"], "after": result["top1"]}

    return kept_or_measured(bench, f"{student}-{arm}-{seed}", _with_images(bench, testbed, config, arm, seed), figures)


def _count(bench: Bench, testbed: Testbed, arm: str, seed: int) -> int:
    """Return the number of an arm's images."""
    return sum(find_source(uri).num_rows for uri in _images(bench, testbed, arm, seed))


def _with_images(bench: Bench, testbed: Testbed, config: Any, arm: str, seed: int) -> dict[str, Any]:
    """Return the settings that figures depend on, with those of synthetic images."""
    return comparable_settings(config, () if arm in (REAL, REFERENCE) else _syntheses(bench, testbed, arm, seed))


def run(
    bench: Bench, testbed: Testbed, parts: Sequence[str], seeds: Sequence[int], processes: int
) -> dict[str, dict[str, list[Figures]]]:
    """Return the figures by part and arm, one for each seed."""
    arms = {"images": SYNTHETIC, **{part: _arms(testbed, part) for part in parts}}

    def wave(of: Sequence[str]) -> list[Cell]:
        return [
            Cell(f"{part} on {arm}", seed, partial(measure, bench, testbed.name, part, arm, seed))
            for seed in seeds
            for part in of
            for arm in arms[part]
        ]

    found = measure_cells("efficacy", [wave(["images"]), wave(parts)], processes)
    return {part: {arm: [found[f"{part} on {arm}", seed] for seed in seeds] for arm in arms[part]} for part in arms}


def _arms(testbed: Testbed, part: str) -> Sequence[str]:
    return (*ARMS, MIXED) if testbed.mixed and part in testbed.students else ARMS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testbed", choices=sorted(TESTBEDS), required=True)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument(
        "--parts", nargs="+", help=f"{RANGES}, {QUANTIZED} or kinds of students; by default all of the testbed"
    )
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, as for benchmarks.cifar")
    parser.add_argument("--folder", help="what is measured is kept there; by default runs/efficacy/TESTBED")
    parser.add_argument("--anew", action="store_true", help="measure everything again, as after a change of the code")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the page and its figures")
    options = parser.parse_args(argv)
    testbed = TESTBEDS[options.testbed]
    known = [RANGES, QUANTIZED, *testbed.students]
    parts = options.parts or known
    if unknown := set(parts) - set(known):
        parser.error(f"{testbed.name} has no {', '.join(sorted(unknown))}")
    bench = Bench(folder=options.folder or f"runs/efficacy/{testbed.name}", stages=testbed.stages)
    if options.anew:
        shutil.rmtree(bench.path("cells"), ignore_errors=True)
    started = time.monotonic()
    make_inputs(testbed, bench, options.data)
    _, teacher = _calibrate_reference(bench, testbed)
    figures = run(bench, testbed, parts, range(options.seeds), options.processes)
    facts = circumstances("benchmarks.efficacy", torch.device("cpu"))
    facts |= {"testbed": testbed.name, "seeds": options.seeds, "teacher": teacher}
    facts["minutes"] = round((time.monotonic() - started) / 60)
    reached = goals(testbed, figures, teacher)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"efficacy-{testbed.name}.md").write_text(page(figures, reached, facts) + "\n")
    content = {**facts, "goals": reached, "figures": figures}
    (options.results / f"efficacy-{testbed.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({"testbed": testbed.name, "goals": reached}))


if __name__ == "__main__":
    main()
