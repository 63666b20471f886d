from typing import Any

import pytest

from pipeline.config import from_dict, to_dict
from pipeline.errors import ConfigError
from pipeline.inversion import InversionConfig, StopFormula
from pipeline.inversion.schedule import (
    PatchChange,
    alive_phases,
    check_stops,
    rebirth_changes,
    spread_stops,
    stop_changes,
    survivors,
)


def test_published_schedule_on_196_patches() -> None:
    assert survivors(196, [0.3, 0.3, 0.3, 0.3]) == [137, 95, 66, 46]


def test_recorded_schedule_on_49_patches() -> None:
    assert survivors(49, [0.3, 0.3, 0.3, 0.3]) == [34, 23, 16, 11]


def test_phases() -> None:
    changes = stop_changes(196, [50, 100], [0.3, 0.3])
    assert changes == {50: PatchChange(137), 100: PatchChange(95)}
    assert alive_phases(196, changes, 400) == [(50, 196), (50, 137), (300, 95)]
    assert alive_phases(196, {}, 400) == [(400, 196)]


@pytest.mark.parametrize(
    ("num_patches", "factor", "steps", "detached", "left"),
    [
        (196, 2, [200], [98], 98),
        (196, 4, [100, 200, 300], [49, 49, 49], 49),
        (196, 7, [57, 114, 171, 228, 285, 342], [28] * 6, 28),
        (16, 3, [133, 266], [5, 5], 6),
    ],
)
def test_rebirth(num_patches: int, factor: int, steps: list[int], detached: list[int], left: int) -> None:
    changes = rebirth_changes(num_patches, factor, 400)
    assert list(changes) == steps
    assert [change.count for change in changes.values()] == detached
    assert all(change.detaches for change in changes.values())
    assert sum(detached) + left == num_patches
    config = InversionConfig(iterations=400, rebirth=factor)
    assert config.phases(num_patches)[-1] == (400 // factor, left)
    assert config.num_steps == sum(count for count, _ in config.phases(num_patches)) == 400 // factor * factor


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rebirth": 1}, "rebirth must be at least 2, not 1"),
        ({"rebirth": 11, "iterations": 10}, "rebirth 11 needs at least 11 iterations, not 10"),
        ({"rebirth": 2, "stop_steps": [3], "stop_fractions": [0.5]}, r"rebirth gives stop_steps .*, not to \[3\] and"),
        ({"rebirth": 2, "stop_formula": StopFormula(keep_ratio=0.5, by_step=300)}, "leave stop_formula out"),
    ],
)
def test_impossible_rebirths_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InversionConfig(**{"iterations": 400, **settings})


def test_more_images_than_patches_are_refused() -> None:
    with pytest.raises(ConfigError, match="rebirth 5 makes more images than there are patches, 4"):
        InversionConfig(rebirth=5).check(4)


def test_rebirth_fills_in_the_lists_once() -> None:
    config = InversionConfig(rebirth=4)
    assert (config.stop_steps, config.stop_fractions) == ([], [])
    assert from_dict(InversionConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("steps", "fractions", "message"),
    [
        ([5], [1.0], r"\[0, 1\), not 1.0"),
        ([5], [-0.1], r"\[0, 1\), not -0.1"),
        ([5, 5], [0.1, 0.1], r"must increase: \[5, 5\]"),
        ([9, 5], [0.1, 0.1], r"must increase: \[9, 5\]"),
        ([0], [0.1], r"at least 1.*\[0\]"),
        ([10], [0.1], r"before the end, 10 iterations: \[10\]"),
        ([5], [0.1, 0.1], "stop_steps has 1 entries, stop_fractions has 2"),
    ],
)
def test_impossible_schedules_are_refused(steps: list[int], fractions: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_stops(steps, fractions, 10)


def test_fewer_than_one_patch_left_is_refused() -> None:
    with pytest.raises(ConfigError, match="fewer than one of 4 patches"):
        survivors(4, [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("keep_ratio", "by_step", "num_stops", "steps", "alive"),
    [
        (0.25, 300, 4, [75, 150, 225, 300], [138, 97, 68, 48]),
        (0.25, 300, 1, [300], [49]),
        (0.5, 10, 3, [3, 6, 10], [155, 123, 97]),
        (0.01, 4, 4, [1, 2, 3, 4], [61, 19, 6, 1]),
    ],
)
def test_schedule_by_its_end(
    keep_ratio: float, by_step: int, num_stops: int, steps: list[int], alive: list[int]
) -> None:
    made, fractions = spread_stops(keep_ratio, by_step, num_stops)
    assert made == steps
    assert survivors(196, fractions) == alive


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_ratio": 0.0, "by_step": 10}, r"keep_ratio must lie in \(0, 1\), not 0.0"),
        ({"keep_ratio": 1.0, "by_step": 10}, r"keep_ratio must lie in \(0, 1\), not 1.0"),
        ({"keep_ratio": 0.5, "by_step": 3}, "num_stops must be from 1 to by_step 3, not 4"),
        ({"keep_ratio": 0.5, "by_step": 3, "num_stops": 0}, "num_stops must be from 1 to by_step 3, not 0"),
    ],
)
def test_impossible_formulas_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StopFormula(**settings)


def test_a_formula_fills_in_the_lists_once() -> None:
    formula = StopFormula(keep_ratio=0.25, by_step=30, num_stops=2)
    config = InversionConfig(iterations=100, stop_formula=formula)
    assert (config.stop_steps, config.stop_fractions) == ([15, 30], [0.5, 0.5])
    assert from_dict(InversionConfig, to_dict(config)) == config
    # As flags say over a file that has lists.
    assert InversionConfig(iterations=100, stop_formula=formula, stop_steps=[], stop_fractions=[]) == config
    with pytest.raises(ConfigError, match=r"leave them out or set both to \[\], not to \[7\] and \[0.5\]"):
        InversionConfig(iterations=100, stop_formula=formula, stop_steps=[7], stop_fractions=[0.5])
    with pytest.raises(ConfigError, match="before the end, 20 iterations"):
        InversionConfig(iterations=20, stop_formula=formula)


@pytest.mark.parametrize(
    ("num_patches", "keep_ratio", "num_stops", "left"),
    [(196, 0.25, 4, 49), (196, 0.25, 8, 49), (196, 1 / 7, 1, 28), (16, 0.25, 4, 4), (10, 0.1, 1, 1), (100, 0.1, 1, 10)],
)
def test_a_formula_reaches_its_ratio(num_patches: int, keep_ratio: float, num_stops: int, left: int) -> None:
    formula = StopFormula(keep_ratio=keep_ratio, by_step=300, num_stops=num_stops)
    phases = InversionConfig(stop_formula=formula).phases(num_patches)
    assert len(phases) == num_stops + 1
    assert phases[-1] == (3700, left)
