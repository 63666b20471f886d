import pytest

from pipeline.errors import ConfigError
from pipeline.inversion.schedule import alive_phases, check_stops, survivors


def test_published_schedule_on_196_patches() -> None:
    assert survivors(196, [0.3, 0.3, 0.3, 0.3]) == [137, 95, 66, 46]


def test_recorded_schedule_on_49_patches() -> None:
    assert survivors(49, [0.3, 0.3, 0.3, 0.3]) == [34, 23, 16, 11]


def test_phases() -> None:
    assert alive_phases(196, [50, 100], [0.3, 0.3], 400) == [(50, 196), (50, 137), (300, 95)]
    assert alive_phases(196, [], [], 400) == [(400, 196)]


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
