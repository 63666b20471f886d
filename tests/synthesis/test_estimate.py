from pathlib import Path

import pytest

from pipeline.inversion import InversionConfig
from pipeline.synthesis.estimate import shard_seconds, time_steps
from tests.synthesis.conftest import make_config


def test_phases_of_the_published_schedule() -> None:
    found = InversionConfig().phases(196)
    assert found == [(50, 196), (50, 137), (100, 95), (100, 66), (3700, 46)]
    assert shard_seconds(found, [1.0, 0.5, 0.25, 0.1, 0.01]) == pytest.approx(147)


def test_dense_is_one_phase() -> None:
    assert InversionConfig(iterations=7, stop_steps=[], stop_fractions=[]).phases(16) == [(7, 16)]


def test_each_phase_is_timed(tiny_folder: Path) -> None:
    seconds = time_steps(make_config(tiny_folder, "unused"), [0, 1, 2])
    assert len(seconds) == 3
    assert all(0 < value < 5 for value in seconds)


def test_each_phase_of_a_rebirth_is_timed(tiny_folder: Path) -> None:
    inversion = {"iterations": 9, "rebirth": 4, "adaptive_end": {"hold_steps": 2}}
    config = make_config(tiny_folder, "unused", images_per_class=4, shard_size=8, inversion=inversion)
    assert len(time_steps(config, [0] * 4 + [1] * 4)) == len(config.inversion.phases(16)) == 4
