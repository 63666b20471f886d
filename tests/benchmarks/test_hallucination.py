import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.hallucination import HallucinationConfig, invert_set, main
from benchmarks.hallucination_arms import (
    GRID,
    HALF,
    RandomRanking,
    chosen_patches,
    foreground_share,
    make_arms,
    rank_real_images,
)
from benchmarks.hallucination_report import BASE, Trial, page
from benchmarks.shapes import make_scenes
from examples.digits.teacher import build_teacher, normalize
from pipeline.inversion import InversionConfig, Teacher
from pipeline.inversion.patches import all_patches

LABELS = torch.arange(6)
TINY = {"seeds": [1], "train_images": 24, "held_out": 12, "images_per_class": 4, "iterations": 20}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_teacher(0, channels=3, num_classes=6).eval()


def test_foreground_share_is_of_the_kept_area() -> None:
    masks = np.zeros((1, 32, 32), bool)
    masks[0, :4, :6] = True  # the first patch, and half the second
    assert foreground_share(masks, torch.tensor([[0]])) == 100
    assert foreground_share(masks, torch.tensor([[0, 1]])) == 75
    assert foreground_share(masks, all_patches(1, GRID**2)) == pytest.approx(100 * masks.mean())


def test_patches_with_the_highest_scores_survive_and_are_detached_first(model: torch.nn.Module) -> None:
    teacher = Teacher(model, mean=HALF, std=HALF)
    images = normalize(make_scenes(6, matching=1.0, seed=0).images)
    best = teacher.forward_scores(images)[1].topk(16, dim=1).indices.sort(dim=1).values
    (kept,) = chosen_patches(teacher, images, LABELS, InversionConfig(stop_steps=[1], stop_fractions=[0.75]))
    assert torch.equal(kept, best)
    detached = chosen_patches(teacher, images, LABELS, InversionConfig(stop_steps=[], stop_fractions=[], rebirth=4))
    assert torch.equal(detached[0], best)
    assert torch.equal(torch.cat(detached, dim=1).sort(dim=1).values, all_patches(6, GRID**2))


def test_random_ranking_is_seeded_and_leaves_answers_alone(model: torch.nn.Module) -> None:
    images = normalize(make_scenes(6, matching=1.0, seed=0).images)
    teacher = Teacher(model, mean=HALF, std=HALF)
    rankings = [teacher, *(RandomRanking(model, seed=seed) for seed in (1, 1, 2))]
    own, first, again, other = (chosen_patches(ranking, images, LABELS, InversionConfig())[0] for ranking in rankings)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, own)
    assert torch.equal(RandomRanking(model, seed=1)(images), teacher(images))


def test_arms_stop_the_patches_that_they_say(model: torch.nn.Module) -> None:
    config = HallucinationConfig(iterations=20)
    sets = {arm.name: invert_set(arm, model, 4, seed=0) for arm in make_arms(config.iterations, config.rebirth)}
    assert {name: (len(images), images.keep_indices.shape[1]) for name, images in sets.items()} == {
        "dense": (24, 64),
        "sparse": (24, 14),
        "random patches": (24, 14),
        "rebirth": (24, 16),
        "sparse by attention received": (24, 14),
        "sparse by gradient × activation": (24, 14),
    }
    for images in sets.values():
        assert np.bincount(images.labels).tolist() == [4] * 6
    # The random choice goes through the engine: other patches than the teacher's.
    sparse = {name: images.keep_indices for name, images in sets.items() if images.keep_indices.shape[1] == 14}
    for name, other in sparse.items():
        assert name == "sparse" or not np.array_equal(sparse["sparse"], other), name


def test_base_rate_and_choices_of_real_images(model: torch.nn.Module) -> None:
    scenes = make_scenes(60, matching=0.0, seed=1)
    kept = rank_real_images(make_arms(iterations=200, rebirth=4), model, scenes, seed=0)
    shares = {name: foreground_share(scenes.masks, keep) for name, keep in kept.items()}
    base = shares[BASE]
    assert base == pytest.approx(100 * scenes.masks.mean())
    assert np.mean([share for name, share in shares.items() if name.startswith("rebirth")]) == pytest.approx(base)
    assert abs(shares["random patches"] - base) < 5
    assert kept["sparse"].shape == (60, 14)


def test_page_is_made_of_the_figures() -> None:
    def trial(sparse: float, dense: float) -> Trial:
        top1 = {"student on dense": dense, "student on sparse": sparse}
        return Trial(
            foreground={
                BASE: {"matching": 20.0, "swapped": 20.0},
                "sparse": {"matching": 45.0, "swapped": 50.0},
            },
            top1={name: {"matching": 90.0, "swapped": value} for name, value in top1.items()},
            seconds={"dense": 2.0, "sparse": 1.0},
            pictures={},
        )

    text = page([trial(30.0, 40.0), trial(52.0, 50.0)], {"commit": "abc"})
    assert "| student on sparse | 90.0 ± 0.0 | 41.0 ± 15.6 | 49.0 ± 15.6 |" in text
    # 10 less in one seed, 2 more in the other: no arm is said to be better.
    assert "| student on sparse − student on dense | +0.0 ± 0.0 | 0 of 2 | -4.0 ± 8.5 | 1 of 2 |" in text
    assert "| sparse − dense | +25.0 ± 0.0 | 2 of 2 | +30.0 ± 0.0 | 2 of 2 |" in text
    assert "- commit: `abc`" in text


def test_one_command_writes_page_and_figure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {**TINY, "output": tmp_path, "workers": 1, "teacher_epochs": 1, "student_epochs": 1}
    assert main([f"--{name}={value}" for name, value in settings.items()]) == 0
    out, err = capfd.readouterr()
    # Ray, which tests before this one started, may have printed lines of its own.
    written = json.loads(out.strip().splitlines()[-1])
    assert "seed 1" in err
    text = Path(written["page"]).read_text()
    for name in ("student on random patches", "rebirth, image 4 of 4", "commit", "torch", '"seeds": [1]'):
        assert name in text
    assert (tmp_path / "hallucination.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seeds=[]"], "seeds must be one or more different numbers, not []"),
        (["--matching=2"], "matching must lie in [0, 1], not 2.0"),
        (["--images_per_class=7"], "images_per_class 7 is no multiple of rebirth 4"),
    ],
)
def test_bad_settings_are_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
