"""Schedules: step → how many patches survive it, or are detached there."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.checks import check_range
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class PatchChange:
    """Change of the set of patches alive at a step.

    Attributes:
        count: number of patches chosen, the best in the ranking of the step before.
        detaches: whether the chosen patches leave as an image of their own and the others go on (PRI); otherwise the
            chosen go on and the others are stopped (SMI).
    """

    count: int
    detaches: bool = False

    def num_alive(self, before: int) -> int:
        """Return the number of patches that go on, given the number before."""
        return before - self.count if self.detaches else self.count


def check_stops(steps: Sequence[int], fractions: Sequence[float], iterations: int) -> None:
    """Check that a run can follow a stopping schedule.

    Raises:
        ConfigError: the lists differ in length, fractions lie outside [0, 1), or steps do not increase, come before the
            first ranking, or lie past the end.
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
    """Return the steps and fractions of a schedule given by its end.

    Like the published one it stops equal shares at equal distances.

    Args:
        keep_ratio: share of all patches that survives, in (0, 1), except for what each stop loses to rounding down.
        by_step: the iteration of the last stop.
        num_stops: number of stops.

    Raises:
        ConfigError: no such schedule exists.
    """
    check_range("keep_ratio", keep_ratio, 0, 1, open_low=True, open_high=True)
    if not 1 <= num_stops <= by_step:
        raise ConfigError(f"num_stops must be from 1 to by_step {by_step}, not {num_stops}")
    steps = [by_step * (stop + 1) // num_stops for stop in range(num_stops)]
    return steps, [round(1 - keep_ratio ** (1 / num_stops), 6)] * num_stops


def survivors(num_patches: int, fractions: Sequence[float]) -> list[int]:
    """Return the number of patches alive after each stop.

    Each stop ends a share of the patches then alive, and rounds the number that is left down (SMI, progressive
    stopping; Hu et al., ICML 2024, section 3). In floating point, as published: of 100 patches a share of 0.9 leaves 9,
    because 1 - 0.9 is a little less than 0.1.

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


def stop_changes(num_patches: int, steps: Sequence[int], fractions: Sequence[float]) -> dict[int, PatchChange]:
    """Return step → change of a stopping schedule.

    Raises:
        ConfigError: fewer than one patch would be left.
    """
    counts = survivors(num_patches, fractions)
    return {step: PatchChange(count) for step, count in zip(steps, counts, strict=True)}


def ratio_changes(num_patches: int, keep_ratio: float, steps: Sequence[int]) -> dict[int, PatchChange]:
    """Return step → change of a schedule given by its end: equal shares, each count rounded to the nearest."""
    counts = [max(1, round(num_patches * keep_ratio ** ((stop + 1) / len(steps)))) for stop in range(len(steps))]
    return {step: PatchChange(count) for step, count in zip(steps, counts, strict=True)}


def rebirth_changes(num_patches: int, factor: int, iterations: int) -> dict[int, PatchChange]:
    """Return step → change of Patch Rebirth: at steps k·⌊T/v⌋ the best N/v of the patches alive are detached.

    The v-th image is the one that the run ends with. Where v does not divide N, the images differ by one patch in size
    (PRI; Heo & Choi, arXiv 2509.23235, section 3).

    Args:
        num_patches: N, the number of patches of a whole image.
        factor: v, the number of images per run.
        iterations: T, the number of steps.

    Raises:
        ConfigError: there are fewer patches than images.
    """
    if factor > num_patches:
        raise ConfigError(f"rebirth {factor} makes more images than there are patches, {num_patches}")
    bounds = [num_patches * image // factor for image in range(factor)]
    counts = [later - earlier for earlier, later in itertools.pairwise(bounds)]
    return {iterations // factor * (image + 1): PatchChange(count, detaches=True) for image, count in enumerate(counts)}


def alive_phases(num_patches: int, changes: Mapping[int, PatchChange], num_steps: int) -> list[tuple[int, int]]:
    """Return the phases of a run: (number of steps, patches read at each step)."""
    counts = list(itertools.accumulate(changes.values(), lambda alive, c: c.num_alive(alive), initial=num_patches))
    bounds = [0, *changes, num_steps]
    return [(end - start, count) for (start, end), count in zip(itertools.pairwise(bounds), counts, strict=True)]
