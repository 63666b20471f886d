"""Schedules: step → how many patches survive it."""

import itertools
from collections.abc import Sequence

from pipeline.errors import ConfigError


def check_stops(steps: Sequence[int], fractions: Sequence[float], iterations: int) -> None:
    """Refuse a stopping schedule that no run can follow.

    Raises:
        ConfigError: lengths differ, fractions outside [0, 1), steps not increasing, before the first ranked step, or
            past the end.
    """
    if len(steps) != len(fractions):
        raise ConfigError(f"stop_steps has {len(steps)} entries, stop_fractions has {len(fractions)}")
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise ConfigError(f"stop_fractions must lie in [0, 1), not {fraction}: {list(fractions)}")
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ConfigError(f"stop_steps must increase: {list(steps)}")
    if steps and steps[0] < 1:
        raise ConfigError(f"stop_steps must be at least 1, the step before ranks the patches: {list(steps)}")
    if steps and steps[-1] >= iterations:
        raise ConfigError(f"stop_steps must lie before the end, {iterations} iterations: {list(steps)}")


def spread_stops(keep_ratio: float, by_step: int, num_stops: int) -> tuple[list[int], list[float]]:
    """Steps and fractions of a schedule given by its end: the published one in shape, equal shares at equal distances.

    Args:
        keep_ratio: share of all patches that survives, in (0, 1), up to the patches that each stop rounds away.
        by_step: the iteration of the last stop.
        num_stops: how many stops lead there.

    Raises:
        ConfigError: no such schedule exists.
    """
    if not 0 < keep_ratio < 1:
        raise ConfigError(f"keep_ratio must lie in (0, 1), not {keep_ratio}")
    if not 1 <= num_stops <= by_step:
        raise ConfigError(f"num_stops must be from 1 to by_step {by_step}, not {num_stops}")
    steps = [by_step * (stop + 1) // num_stops for stop in range(num_stops)]
    return steps, [round(1 - keep_ratio ** (1 / num_stops), 6)] * num_stops


def survivors(num_patches: int, fractions: Sequence[float]) -> list[int]:
    """How many patches are alive after each stop.

    Each stops a share of those then alive and rounds what is left down (SMI, progressive stopping; Hu et al., ICML
    2024, section 3).

    Raises:
        ConfigError: fewer than one patch would be left.
    """
    counts: list[int] = []
    alive = num_patches
    for fraction in fractions:
        alive = int(alive * (1 - fraction))
        if alive < 1:
            raise ConfigError(
                f"stop_fractions {list(fractions)} leave fewer than one of {num_patches} patches (after {counts})"
            )
        counts.append(alive)
    return counts


def alive_phases(
    num_patches: int, steps: Sequence[int], fractions: Sequence[float], iterations: int
) -> list[tuple[int, int]]:
    """The run as phases (number of steps, patches read in each of them)."""
    bounds = [0, *steps, iterations]
    counts = [num_patches, *survivors(num_patches, fractions)]
    return [(end - start, count) for (start, end), count in zip(itertools.pairwise(bounds), counts, strict=True)]
