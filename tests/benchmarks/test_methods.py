"""The side-by-side of methods: its figures, its page, and a run with little of everything."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.bench import Bench, first_phases
from benchmarks.methods import METHODS, Method, MethodFigures, _make_images, measure, report
from examples.digits.teacher import DigitsConfig, make_digits
from pipeline.config import parse_config
from tests.examples.digits.test_demo import write_small_stages

FACTS = {
    "command": "c",
    "commit": "abc",
    "cores": 2,
    "device": "d",
    "instruction_sets": ["avx2"],
    "torch": "t",
    "timm": "m",
}
ONE = MethodFigures(
    seconds=0.1,
    work=8.0,
    mean_steps=200.0,
    confidence=0.9,
    w4a4_top1=98.0,
    w4a3_top1=88.0,
    before_top1=77.0,
    student_top1=90.0,
)


def test_phases_up_to_a_step() -> None:
    phases = [(50, 196), (50, 137), (300, 95)]
    assert first_phases(phases, 400) == phases
    assert first_phases(phases, 120) == [(50, 196), (50, 137), (20, 95)]
    assert first_phases(phases, 30) == [(30, 196), (0, 137), (0, 95)]


def test_page_tells_differences_from_noise() -> None:
    figures = {
        "real images": [replace(ONE, seconds=None, work=None, mean_steps=None, confidence=None)] * 3,
        "dense": [ONE] * 3,
        "sparse": [replace(ONE, work=2.0)] * 3,
        "better": [replace(ONE, work=1.0, student_top1=top1) for top1 in (92.0, 93.0, 94.0)],
        "unsteady": [replace(ONE, work=1.0, student_top1=top1) for top1 in (85.0, 90.0, 96.0)],
    }
    page = report(figures, {**FACTS, "seeds": [0, 1, 2], "minutes": 3})
    assert "on 2 × d, with avx2, torch t," in page
    assert "| images | CPU s per image | work | steps | confidence | W4A4 top-1 | W4A3 top-1 | student top-1 |" in page
    assert "| better | 0.100 ± 0.000 | 0.12 | 200 ± 0 | 0.900 ± 0.000 | 98.0 ± 0.0 | 88.0 ± 0.0 | 93.0 ± 1.0 |" in page
    assert (
        "| better | +3.0 ± 1.0 | +0.0 ± 0.0 | +0.0 ± 0.0 | student better; W4A4 no different; W4A3 no different |"
        in page
    )
    assert "student no different" in next(line for line in page.splitlines() if line.startswith("| unsteady | +0.3"))
    assert "| real images | – | – | – | – | 98.0 ± 0.0 | 88.0 ± 0.0 | 90.0 ± 0.0 |" in page


@pytest.mark.usefixtures("ray_session")
def test_each_kind_of_method_with_little_of_everything(tmp_path: Path) -> None:
    stages = tmp_path / "stages"
    write_small_stages(stages)
    sparse = yaml.safe_load((stages / "sparse.yaml").read_text())
    (stages / "sparse.yaml").write_text(yaml.safe_dump({**sparse, "images_per_class": 4}))
    bench = Bench(folder=str(tmp_path / "bench"), stages=str(stages), shard_size=40)
    make_digits(parse_config(DigitsConfig, bench.arguments("digits", {"output": bench.input()})))
    wanted = {method.name: method for method in METHODS}
    # What an earlier run left under that name is in nobody's way.
    left = Path(bench.path("images", "sparse-adversarial-1"))
    left.mkdir(parents=True)
    (left / "manifest.json").write_text("{}")
    real = measure(bench, wanted["real images"], 1)
    assert real.work is None
    # To disagree with: any trained student will do, and a calibration and a training for each kind would take minutes.
    shutil.copytree(bench.path("distill", "real-images-1"), bench.path("distill", "sparse-1"))
    adversarial = measure(bench, wanted["sparse, adversarial"], 1)
    for figures in (real, adversarial):
        tops = (figures.w4a4_top1, figures.w4a3_top1, figures.student_top1, figures.before_top1)
        assert all(0 <= top1 <= 100 for top1 in tops)
    made = {
        name: _make_images(bench, wanted[name], bench.path("images", name), 1) for name in ("sparse", "rebirth, v = 4")
    }
    assert made["sparse"]["mean_steps"] == made["rebirth, v = 4"]["mean_steps"] == adversarial.mean_steps == 4
    assert 0 < made["rebirth, v = 4"]["work"] < made["sparse"]["work"]


def test_methods_differ_in_name_and_are_made_of_known_settings() -> None:
    assert len({method.name for method in METHODS}) == len(METHODS)
    assert all(isinstance(method, Method) and (method.stage or not method.settings) for method in METHODS)
