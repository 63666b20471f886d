"""Measure whether synthetic images serve as well as real ones: quantization and students on real held-out images.

    python -m benchmarks.efficacy --testbed digits --seeds 5

Makes sparse and dense images and noise with each seed, and takes as many real images, which are the same for all
seeds; calibrates at several bit widths and trains students on each, by the same code and settings as the jobs. Two
processes of one thread run at a time. What is measured is kept under `--folder`: an interrupted run goes on, and what
other settings made is measured again. Writes `efficacy-TESTBED.md` and `.json` and prints one JSON line with the goals.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.circumstances import circumstances
from benchmarks.efficacy_report import goals, page
from benchmarks.making import Bench, synthesis_config, write_dataset
from benchmarks.testbeds import TESTBEDS, Testbed, make_inputs
from pipeline import storage
from pipeline.config import parse_config, to_dict
from pipeline.distillation import DistillationConfig, distill
from pipeline.quantization import CalibrationConfig, calibrate, range_error
from pipeline.synthesis import SynthesisConfig

RESULTS = Path(__file__).parent / "results"
REAL, REFERENCE = "real", "reference"
SYNTHETIC = ("sparse", "dense", "noise")
ARMS = (REAL, *SYNTHETIC)
QUANTIZED = "quantized"
# What is measured of one set of images, and each figure's name.
Figures = dict[str, float]


def measure(bench: Bench, testbed: str, part: str, arm: str, seed: int) -> Figures:
    """Return the figures of one part of an arm, as kept or measured now; in a process of its own.

    Args:
        bench: files and configs.
        testbed: its name.
        part: `images`, `quantized`, or a kind of student.
        arm: what images.
        seed: of images and student.
    """
    torch.set_num_threads(1)
    if part == "images":
        return _make(bench, arm, seed)
    if part == QUANTIZED:
        return _quantize(bench, TESTBEDS[testbed], arm, seed)
    return _train(bench, TESTBEDS[testbed], part, arm, seed)


def _kept(bench: Bench, part: str, arm: str, seed: int, settings: Any, figures: Callable[[], Figures]) -> Figures:
    """Return the figures of an earlier run with equal settings; otherwise measure and keep them."""
    uri = bench.path("cells", f"{part}-{arm}-{seed}.json")
    settings = json.loads(json.dumps(settings))
    if storage.exists(uri):
        cell = storage.read_json(uri)
        if cell["settings"] == settings:
            return cell["figures"]
    found = figures()
    storage.write_json(uri, {"settings": settings, "figures": found})
    return found


def _make(bench: Bench, arm: str, seed: int) -> Figures:
    config = _synthesis(bench, arm, seed)
    return _kept(bench, "images", arm, seed, _comparable(config), lambda: _anew(config, write_dataset))


def _synthesis(bench: Bench, arm: str, seed: int) -> SynthesisConfig:
    return synthesis_config(bench, arm, {}, _images(bench, arm, seed), seed)


def _images(bench: Bench, arm: str, seed: int) -> str:
    return bench.input(f"{arm}.parquet") if arm in (REAL, REFERENCE) else bench.path("images", f"{arm}-{seed}")


def _quantize(bench: Bench, testbed: Testbed, arm: str, seed: int) -> Figures:
    config = _calibration(bench, arm, seed, testbed.widths)

    def figures() -> Figures:
        result = _anew(config, calibrate)
        ranges = storage.read_json(result["ranges"])
        scores = {f"W{a['weights']}A{a['activations']}": a["top1"] for a in result["artifacts"]}
        return {**scores, "range_error": range_error(ranges, _calibrate_reference(bench, testbed)[0])}

    return _kept(bench, QUANTIZED, arm, seed, _with_images(bench, config, arm, seed), figures)


def _calibration(bench: Bench, arm: str, seed: int, widths: list[dict[str, int]]) -> CalibrationConfig:
    settings = {
        "teacher.name": bench.teacher,
        "images": _images(bench, arm, seed),
        "labeled": bench.input("held_out.parquet"),
        "output": bench.path("calibrate", f"{arm}-{seed}"),
        "settings": widths,
        "formats": ["pt2"],
        "workers.size": 0,
    }
    return parse_config(CalibrationConfig, bench.arguments("calibrate", settings))


def _calibrate_reference(bench: Bench, testbed: Testbed) -> tuple[dict[str, Any], float]:
    """Calibrate on real images that no arm uses, once; return the ranges and the float model's top-1."""
    config = _calibration(bench, REFERENCE, 0, testbed.widths[:1])
    if not storage.exists(storage.join(config.output, "report.json")):
        calibrate(config)
    ranges, report = (storage.read_json(storage.join(config.output, name)) for name in ("ranges.json", "report.json"))
    return ranges, report["fp32"][0]["top1"]


def _train(bench: Bench, testbed: Testbed, student: str, arm: str, seed: int) -> Figures:
    own = {
        "teacher.name": bench.teacher,
        "images": _images(bench, arm, seed),
        "labeled": bench.input("held_out.parquet"),
        "output": bench.path("distill", f"{student}-{arm}-{seed}"),
        "seed": seed,
        "workers.size": 0,
    }
    config = parse_config(DistillationConfig, bench.arguments("distill", {**own, **testbed.students[student]}))

    def figures() -> Figures:
        result = _anew(config, distill)
        return {"before": result["before_top1"], "after": result["top1"]}

    return _kept(bench, student, arm, seed, _with_images(bench, config, arm, seed), figures)


def _anew(config: Any, job: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Run a job over whatever an earlier run left in its output."""
    storage.remove_folder(config.output)
    return job(config)


def _with_images(bench: Bench, config: Any, arm: str, seed: int) -> dict[str, Any]:
    """Return the settings that figures depend on, with those of synthetic images."""
    own = _comparable(config)
    return {**own, "synthesis": _comparable(_synthesis(bench, arm, seed))} if arm in SYNTHETIC else own


def _comparable(config: Any) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name not in ("output", "workers", "pool")}


def run(
    bench: Bench, testbed: Testbed, parts: Sequence[str], seeds: Sequence[int], processes: int
) -> dict[str, dict[str, list[Figures]]]:
    """Return the figures by part and arm, one for each seed."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:

        def start(cells: Iterable[tuple[str, str, int]]) -> dict[tuple[str, str, int], Future[Figures]]:
            return {cell: pool.submit(measure, bench, testbed.name, *cell) for cell in cells}

        images = start(("images", arm, seed) for seed in seeds for arm in SYNTHETIC)
        _report(images)
        uses = start((part, arm, seed) for seed in seeds for part in parts for arm in ARMS)
        _report(uses)
    found = {cell: future.result() for cell, future in (images | uses).items()}
    return {
        part: {arm: [found[part, arm, seed] for seed in seeds] for arm in ARMS if (part, arm, seeds[0]) in found}
        for part in ("images", *parts)
    }


def _report(wave: Mapping[tuple[str, str, int], Future[Figures]]) -> None:
    for (part, arm, seed), future in wave.items():
        print(f"efficacy: {part} on {arm}, seed {seed}: {future.result()}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testbed", choices=sorted(TESTBEDS), required=True)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--parts", nargs="+", help=f"{QUANTIZED} or kinds of students; by default all of the testbed")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, as for benchmarks.cifar")
    parser.add_argument("--folder", help="what is measured is kept there; by default runs/efficacy/TESTBED")
    parser.add_argument("--anew", action="store_true", help="measure everything again, as after a change of the code")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the page and its figures")
    options = parser.parse_args(argv)
    testbed = TESTBEDS[options.testbed]
    parts = options.parts or [QUANTIZED, *testbed.students]
    if unknown := set(parts) - {QUANTIZED, *testbed.students}:
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
