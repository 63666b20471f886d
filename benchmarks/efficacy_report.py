"""Goals of a testbed, whether they are met, and the page of its figures."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.circumstances import made_by
from benchmarks.markdown import table
from benchmarks.spread import spread, standard_error
from benchmarks.testbeds import INVERTED, MIXED, Testbed

# Part → arm → name of a figure → its value with each seed.
Measured = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
_WORK_SHARE = 1 / 3


def goals(testbed: Testbed, measured: Measured, teacher: float) -> list[dict[str, Any]]:
    """Return every goal of what was measured, with its value and bound, and whether it is met.

    Args:
        testbed: bounds.
        measured: all figures.
        teacher: top-1 of the float model, in percent.
    """
    found = [_work(measured["images"])]
    if "quantized" in measured:
        found += _quantized(testbed, measured["quantized"], teacher)
    if "ranges" in measured and testbed.range_error is not None:
        error = _mean(measured["ranges"]["sparse"], "range_error")
        found.append(_at_most("ranges on sparse: error", error, testbed.range_error))
    if "pruned" in measured and testbed.recovery is not None:
        found += [
            _at_least(f"pruned student on {arm}: share of real images' gain", value, testbed.recovery)
            for arm, value in _recoveries(measured["pruned"]).items()
        ]
    if "scratch" in measured and testbed.scratch is not None:
        found += [
            _at_least(
                f"student from scratch on {arm}: top-1", _mean(measured["scratch"][arm], "after"), testbed.scratch
            )
            for arm in INVERTED
        ]
    return found


def _work(images: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    share = _mean(images["sparse"], "work") / _mean(images["dense"], "work")
    return _at_most("work of a sparse image: share of a dense one's", share, _WORK_SHARE)


def _quantized(
    testbed: Testbed, arms: Mapping[str, Sequence[Mapping[str, float]]], teacher: float
) -> Iterator[dict[str, Any]]:
    for arm in INVERTED:
        for width, bound in testbed.drops.items():
            yield _at_most(f"{width} on {arm}: points below the teacher", teacher - _mean(arms[arm], width), bound)
        for width in testbed.drops:
            difference = _mean(arms["real"], width) - _mean(arms[arm], width)
            yield _at_most(f"{width} on {arm}: points below real images", difference, testbed.below_real)
        for width in testbed.drops:
            mean, error = _difference(arms[arm], arms["noise"], width)
            yield _not_behind(f"{width} on {arm}: points above noise", mean, error)


def _recoveries(students: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Return, by arm, the share that it gains of what real images gain over the untrained copy."""
    before, real = _mean(students["real"], "before"), _mean(students["real"], "after")
    arms = [arm for arm in (*INVERTED, MIXED) if arm in students]
    return {arm: (_mean(students[arm], "after") - before) / (real - before) for arm in arms}


def _difference(
    ours: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], name: str
) -> tuple[float, float]:
    """Return the mean difference, seed by seed, and its standard error; infinite for a single seed."""
    points = [a[name] - b[name] for a, b in zip(ours, others, strict=True)]
    return statistics.fmean(points), standard_error(points)


def _mean(figures: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.fmean(f[name] for f in figures)


def _at_least(goal: str, value: float, bound: float) -> dict[str, Any]:
    # A hundredth of a point is not measured; sums of floats miss a bound by less.
    return {"goal": goal, "value": round(value, 3), "bound": f">= {bound:g}", "met": value >= bound - 1e-9}


def _at_most(goal: str, value: float, bound: float) -> dict[str, Any]:
    return {"goal": goal, "value": round(value, 3), "bound": f"<= {bound:.3g}", "met": value <= bound + 1e-9}


def _not_behind(goal: str, value: float, error: float) -> dict[str, Any]:
    """Return a goal that is missed only where a difference is below zero by more than chance.

    Args:
        goal: what it is.
        value: the mean difference.
        error: its standard error; infinite for a single seed, of which nothing can be said.
    """
    if not math.isfinite(error):
        return {"goal": goal, "value": round(value, 3), "bound": "none, with a single seed", "met": True}
    bound = f">= {-2 * error:.2g} (two standard errors)"
    return {**_at_least(goal, value, -2 * error), "bound": bound, "standard_error": round(error, 3)}


def page(measured: Measured, reached: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Return the page: what was run, the goals, and a table of means and standard deviations for each part."""
    made = (
        f"{made_by(facts)}, in {facts['minutes']} minutes. Means and standard deviations over {facts['seeds']} seeds "
        f"of images and students; real images are the same for all seeds. Top-1 in percent of real held-out images; "
        f"the teacher has {facts['teacher']:.2f}."
    )
    rows = [(g["goal"], f"{g['value']:g}", g["bound"], "yes" if g["met"] else "**no**") for g in reached]
    tables = [text for part, arms in measured.items() for text in (f"## {part.capitalize()}", _table(arms))]
    return "\n\n".join(
        [f"# Efficacy on {facts['testbed']}", made, "## Goals", table(("goal", "value", "bound", "met"), rows), *tables]
    )


def _table(arms: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    names = list(next(iter(arms.values()))[0])
    rows = [(arm, *(_spread([f[name] for f in figures]) for name in names)) for arm, figures in arms.items()]
    return table(("images", *names), rows)


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    # Work is counted in billions.
    return f"{mean:.3g}" if mean > 1e4 else spread(values, 2)
