"""Curves of students by number of images and of steps: points, settings, and a run with little of everything."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import curves, testbeds
from benchmarks.bench import Bench, synthesis_config
from benchmarks.curves import Point, draw, page, points, synthesis_settings
from benchmarks.testbeds import CIFAR, CIFAR_STAGES, DIGITS
from pipeline import storage
from tests.examples.digits.test_demo import write_small_stages


def test_both_curves_of_an_arm_share_a_point() -> None:
    found = points(images=(0.5, 1.0), steps=(0.25, 1.0))
    assert [(point.images, point.steps) for point in found if point.arm == "dense"] == [(0.5, 1), (1, 1), (1, 0.25)]
    assert len({point.name for point in found}) == len(found) == 6


def test_patches_are_stopped_at_the_same_shares_of_fewer_steps() -> None:
    config = synthesis_config(Bench(folder="unused"), "sparse", {}, "unused", 0)
    assert config.inversion.stop_steps == [10, 20, 30, 50]
    assert synthesis_settings(config, Point(arm="sparse", images=0.5, steps=0.25)) == {
        "images_per_class": 10,
        "inversion.iterations": 31,
        "inversion.stop_steps": [2, 5, 8, 12],
    }


def test_students_of_few_and_of_many_images_see_equally_many_views() -> None:
    def epochs(point: Point, views: int | None) -> int:
        bench = Bench(folder="unused", stages=CIFAR_STAGES)
        made = curves._syntheses(bench, CIFAR, point, 0)
        return curves._training(bench, CIFAR, made, point, 0, views).epochs

    assert [epochs(Point(arm="sparse", images=share), None) for share in (0.5, 1, 2)] == [30, 15, 8]
    assert epochs(Point(arm="dense"), 15_000) == 10
    digits = Bench(folder="unused")
    # Two images per class for an eighth of 20: what rounding leaves out is seen no less often.
    few = Point(arm="sparse", images=0.125)
    made = curves._syntheses(digits, DIGITS, few, 0)
    assert curves._training(digits, DIGITS, made, few, 0, None).epochs == 180 * 200 // 20


@pytest.mark.usefixtures("ray_session")
def test_little_of_everything_is_measured_once_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_stages(tmp_path / "stages")
    bench = Bench(folder=str(tmp_path / "bench"), stages=str(tmp_path / "stages"), shard_size=20)
    monkeypatch.setitem(curves.TESTBEDS, "digits", replace(DIGITS, students={"pruned": {"epochs": 1}}))
    testbeds.make_inputs(DIGITS, bench, None)
    found = {point: [curves.measure(bench, "digits", point, 0, None)] for point in points((0.5, 1.0), (1.0,))}
    numbers = {point.name: figures[0]["number"] for point, figures in found.items()}
    assert numbers == {
        f"{arm}-images-{share:g}-steps-1": 20 * share for arm in ("sparse", "dense") for share in (0.5, 1)
    }
    assert all(0 <= figures[0]["top1"] <= 100 and figures[0]["work"] > 0 for figures in found.values())
    storage.remove_folder(bench.path("images"))
    some = next(iter(found))
    assert curves.measure(bench, "digits", some, 0, None) == found[some][0]

    facts = dict.fromkeys(("command", "commit", "cores", "device", "torch", "timm", "minutes"), "x")
    text = page(found, {**facts, "testbed": "digits", "instruction_sets": ["avx2"], "seeds": 1})
    assert text.count("| sparse |") == text.count("| dense |") == 2
    by_images, by_steps, by_work = draw(found).axes
    assert [len(axes.containers) for axes in (by_images, by_steps, by_work)] == [2, 2, 4]
    assert [line.get_xdata().tolist() for line, *_ in by_images.containers] == [[10, 20], [10, 20]]
