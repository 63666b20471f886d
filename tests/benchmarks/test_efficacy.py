"""The efficacy benchmark: its goals, its page, what it keeps, and a run with little of everything."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import efficacy, testbeds
from benchmarks.bench import Bench
from benchmarks.cifar import CLASS_NAMES, Photos
from benchmarks.efficacy import QUANTIZED, RANGES, measure
from benchmarks.efficacy_report import goals, page
from benchmarks.testbeds import CIFAR, DIGITS, TESTBEDS, make_inputs
from pipeline.dataset.discovery import find_source
from pipeline.models import ModelConfig, load_model
from pipeline.quantization import BitWidths
from tests.examples.digits.test_demo import write_small_stages

NARROW = replace(DIGITS, drops={"W4A4": 1.0}, students={"pruned": {}, "scratch": {}})
IMAGES = {"sparse": [{"work": 2.0}] * 2, "dense": [{"work": 8.0}] * 2, "noise": [{"work": 0.0}] * 2}


def quantized(**top1: tuple[float, float]) -> dict[str, list[dict[str, float]]]:
    return {arm: [{"W4A4": value} for value in values] for arm, values in top1.items()}


def trained(**top1: float) -> dict[str, list[dict[str, float]]]:
    return {arm: [{"before": 80.0, "after": value}] * 2 for arm, value in top1.items()}


def reached(**measured: Any) -> dict[str, tuple[float, bool]]:
    found = goals(NARROW, {"images": IMAGES, **measured}, 98.0)
    return {goal["goal"]: (goal["value"], goal["met"]) for goal in found}


def test_goals_of_quantization_compare_with_the_teacher_with_real_images_and_with_noise() -> None:
    scores = quantized(real=(97.5, 97.5), sparse=(97.0, 97.4), dense=(96.0, 96.2), noise=(97.0, 97.1))
    assert reached(quantized=scores, ranges={"sparse": [{"range_error": 0.04}] * 2}) == {
        "work of a sparse image: share of a dense one's": (0.25, True),
        "W4A4 on sparse: points below the teacher": (0.8, True),
        "W4A4 on sparse: points below real images": (0.3, True),
        # Ahead of noise, within the error.
        "W4A4 on sparse: points above noise": (0.15, True),
        "W4A4 on dense: points below the teacher": (1.9, False),
        "W4A4 on dense: points below real images": (1.4, False),
        # Behind it, by much more than the error.
        "W4A4 on dense: points above noise": (-0.95, False),
        "ranges on sparse: error": (0.04, True),
    }


def test_goals_of_students_are_shares_of_what_real_images_gain() -> None:
    students = trained(real=90.0, sparse=89.5, dense=89.4, noise=70.0)
    found = reached(pruned=students, scratch=trained(real=99.0, sparse=92.0, dense=91.0, noise=10.0))
    del found["work of a sparse image: share of a dense one's"]
    assert found == {
        "pruned student on sparse: share of real images' gain": (0.95, True),
        "pruned student on dense: share of real images' gain": (0.94, False),
        "student from scratch on sparse: top-1": (92.0, True),
        "student from scratch on dense: top-1": (91.0, False),
    }


def test_students_of_sparse_and_dense_images_together_have_a_goal_of_their_own() -> None:
    found = reached(pruned=trained(real=90.0, sparse=89.5, dense=89.4, noise=70.0, mixed=89.6))
    assert found["pruned student on mixed: share of real images' gain"] == (0.96, True)


def test_images_together_are_seen_as_often_as_apart() -> None:
    bench = Bench(folder="unused", stages=testbeds.CIFAR_STAGES)
    together = efficacy._images(bench, CIFAR, testbeds.MIXED, 3)
    assert together == [*efficacy._images(bench, CIFAR, "sparse", 3), *efficacy._images(bench, CIFAR, "dense", 3)]
    assert CIFAR.views_of(testbeds.MIXED) == 2 * 45_000
    assert efficacy._arms(CIFAR, "pruned") == ("real", "sparse", "dense", "noise", "mixed")
    # Calibration takes equally many images from every arm.
    assert "mixed" not in (*efficacy._arms(CIFAR, QUANTIZED), *efficacy._arms(DIGITS, "pruned"))


def test_the_page_shows_goals_and_figures() -> None:
    measured = {"images": IMAGES, "pruned": trained(real=90.0, sparse=89.5, dense=80.0, noise=70.0)}
    found = goals(NARROW, measured, 98.0)
    facts = dict.fromkeys(("command", "commit", "cores", "device", "torch", "timm", "minutes", "testbed"), "x")
    text = page(measured, found, {**facts, "instruction_sets": ["avx2"], "seeds": 2, "teacher": 98.0})
    assert "| pruned student on dense: share of real images' gain | 0 | >= 0.95 | **no** |" in text
    assert "| sparse | 80.00 ± 0.00 | 89.50 ± 0.00 |" in text


def test_cifar_is_divided_into_disjoint_sets_for_the_committed_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path, split: str) -> Photos:
        number = 0 if split == "train" else 1
        pixels = np.random.default_rng(number).integers(0, 256, (80, 3, 32, 32), dtype=np.uint8)
        return Photos(torch.from_numpy(pixels), torch.arange(80) % 10)

    monkeypatch.setattr(testbeds, "load_photos", load)
    bench = Bench(folder=str(tmp_path), stages=testbeds.CIFAR_STAGES)
    testbeds.prepare_cifar(bench, tmp_path, per_class=3)
    counts = {name: find_source(bench.input(f"{name}.parquet")).num_rows for name in ("real", "reference", "held_out")}
    assert counts == {"real": 30, "reference": 30, "held_out": 80}
    assert load_model(ModelConfig(name=bench.teacher)).class_names == CLASS_NAMES


def test_the_configs_of_cifar_are_read() -> None:
    bench = Bench(folder="unused", stages=testbeds.CIFAR_STAGES)
    made = {arm: efficacy._syntheses(bench, CIFAR, arm, 3) for arm in efficacy.SYNTHETIC}
    kept = {arm: [config.inversion.phases(64)[-1][1] for config in configs] for arm, configs in made.items()}
    assert kept == {"sparse": [14, 14], "dense": [64, 64], "noise": [64]}
    calibration = efficacy._calibration(bench, CIFAR, "sparse", 3, QUANTIZED)
    assert calibration.max_images == 200
    assert calibration.rounding == "gptq"
    assert calibration.qat is not None
    assert calibration.qat.settings == [BitWidths(weights=4, activations=4)]
    assert calibration.images == [config.output for config in made["sparse"]]


def test_means_of_an_arm_weigh_its_datasets_by_their_images() -> None:
    figures = [{"number": 30, "work": 1.0}, {"number": 10, "work": 5.0}]
    assert efficacy._mean_figures(figures) == {"number": 40, "work": 2.0}


def test_a_testbed_that_needs_photos_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--data must name the folder"):
        make_inputs(TESTBEDS["cifar10"], Bench(folder=str(tmp_path)), None)


@pytest.mark.usefixtures("ray_session")
def test_little_of_everything_is_measured_once_and_again_where_settings_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_stages(tmp_path / "stages")
    bench = Bench(folder=str(tmp_path / "bench"), stages=str(tmp_path / "stages"), shard_size=20)
    make_inputs(DIGITS, bench, None)
    small = replace(DIGITS, drops={"W4A4": 1.0}, students={"pruned": {"epochs": 1}})
    monkeypatch.setitem(efficacy.TESTBEDS, "digits", small)
    parts = ("images", RANGES, QUANTIZED, "pruned")
    found = {part: measure(bench, "digits", part, "sparse", 1) for part in parts}
    assert found["images"]["work"] > 0
    assert 0 <= found[QUANTIZED]["W4A4"] <= 100
    assert found[RANGES]["range_error"] > 0
    assert 0 <= found["pruned"]["after"] <= 100

    cells = {path.name: path.stat().st_mtime_ns for path in Path(bench.path("cells")).iterdir()}
    assert sorted(cells) == [f"{part}-sparse-1.json" for part in ("images", "pruned", "quantized", "ranges")]
    assert {part: measure(bench, "digits", part, "sparse", 1) for part in parts} == found
    assert {path.name: path.stat().st_mtime_ns for path in Path(bench.path("cells")).iterdir()} == cells

    number = found["images"]["number"]
    twice = replace(small, datasets={"sparse": ("sparse", "dense")}, students={"pruned": {}}, views=2 * number * 2)
    monkeypatch.setitem(efficacy.TESTBEDS, "digits", twice)
    assert measure(bench, "digits", "images", "sparse", 1)["number"] == 2 * number
    measure(bench, "digits", "pruned", "sparse", 1)
    assert json.loads(Path(bench.path("cells", "pruned-sparse-1.json")).read_text())["settings"]["epochs"] == 2
