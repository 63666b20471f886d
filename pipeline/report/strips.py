"""Plots with a row for each name: bars, boxes and intervals along one axis."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.report.svg import (
    COLORS,
    GRAY,
    INK,
    LETTER_WIDTH,
    WIDTH,
    Plot,
    dot,
    finite,
    line,
    plot,
    rectangle,
    scale,
    text,
    tick_text,
    ticks,
    value_range,
)
from pipeline.report.text import shortened

_ROW = 16
_TOP, _BOTTOM, _RIGHT = 6, 34, 12
# Names take at most this much of the width.
_WIDEST_NAMES = 150


def bars(rows: Mapping[str, float | None], *, x_label: str, x_range: tuple[float, float] | None = None) -> Plot:
    """Draw a bar from 0 for each name, and its value beside it; a value that is not finite has none.

    Args:
        rows: name → value.
        x_label: what the values are.
        x_range: ends of the axis. By default it goes from 0, or the smallest value below 0, to the largest value, or to
            1 if no value is above 0.
    """
    values = finite(rows.values())
    low, high = x_range or (min([0.0, *values]), max([0.0, *values]) or 1.0)
    frame = _Frame(list(rows), low, high - (low - high) * 0.12)
    shapes = frame.axis(x_label)
    for index, value in enumerate(rows.values()):
        y = frame.middle(index)
        shown = finite([value])
        # On an axis without 0, a bar begins at the end of the axis.
        start, end = frame.x(0.0), frame.x(shown[0] if shown else 0.0)
        shapes.append(rectangle(min(start, end), y - 5, abs(end - start), 10, color=COLORS[0]))
        shapes.append(text(max(start, end) + 4, y + 4, tick_text(shown[0]) if shown else "–"))
    return plot(f"{x_label} of {len(rows)}", frame.height, shapes)


def boxes(rows: Mapping[str, Sequence[float]], *, x_label: str) -> Plot:
    """Draw how values spread in each row: a line from the least to the largest, a box over the middle half, the median.

    Args:
        rows: name → values; values that are not finite are left out.
        x_label: what the values are.
    """
    kept = {name: finite(values) for name, values in rows.items()}
    every = [value for values in kept.values() for value in values]
    frame = _Frame(list(rows), *value_range(every or [0.0]))
    shapes = frame.axis(x_label)
    for index, values in enumerate(kept.values()):
        if not values:
            continue
        y = frame.middle(index)
        least, lower, median, upper, largest = (frame.x(v) for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
        shapes.append(line(least, y, largest, y, color=COLORS[0]))
        shapes.append(rectangle(lower, y - 4, max(upper - lower, 1), 8, color=COLORS[0], opacity=0.45))
        shapes.append(dot(median, y, color=COLORS[1]))
    return plot(f"spread of {x_label} in {len(rows)} rows", frame.height, shapes)


def intervals(rows: Mapping[str, tuple[float, float]], *, x_label: str) -> Plot:
    """Draw an interval for each name, on an axis that is linear around 0 and logarithmic beyond 1.

    Args:
        rows: name → smallest and largest value.
        x_label: what the values are.
    """
    kept = finite(value for bounds in rows.values() for value in bounds)
    # The inverse hyperbolic sine is such an axis.
    frame = _Frame(list(rows), *value_range([math.asinh(value) for value in [0.0, *kept]]), bend=math.asinh)
    shapes = frame.axis(x_label)
    for index, (low, high) in enumerate(rows.values()):
        if len(finite((low, high))) == 2:
            shapes.append(_interval(frame, index, low, high))
    return plot(f"{x_label} of {len(rows)} rows", frame.height, shapes)


def relative_intervals(rows: Mapping[str, tuple[float, float]], *, x_label: str) -> Plot:
    """Draw intervals over a shaded band from 0 to 1, the interval that all are compared with.

    Args:
        rows: name → interval, in units of its own reference. An end below -1 or above 2 is drawn there, with a dot.
        x_label: what the values are.
    """
    frame = _Frame(list(rows), -1.0, 2.0)
    band = rectangle(frame.x(0), _TOP, frame.x(1) - frame.x(0), len(rows) * _ROW, color=GRAY, opacity=0.6)
    shapes = [band, *frame.axis(x_label)]
    for index, (low, high) in enumerate(rows.values()):
        if len(finite((low, high))) == 2:
            shapes.append(_interval(frame, index, low, high))
            beyond = (value for value in (low, high) if not -1 <= value <= 2)
            shapes += [dot(frame.x(value), frame.middle(index), color=COLORS[1], radius=3.5) for value in beyond]
    return plot(f"{x_label} of {len(rows)} rows", frame.height, shapes)


def _interval(frame: "_Frame", index: int, low: float, high: float) -> str:
    start, stop = frame.x(low), frame.x(high)
    return rectangle(start, frame.middle(index) - 3, max(stop - start, 1), 6, color=COLORS[0])


class _Frame:
    """Positions of rows and values, and the axis below them.

    Args:
        names: names of the rows.
        low, high: ends of the axis, after bending.
        bend: function that maps values to positions on the axis; by default none.
    """

    def __init__(
        self, names: Sequence[str], low: float, high: float, *, bend: Callable[[float], float] = lambda value: value
    ) -> None:
        # A name that does not fit keeps its beginning.
        self.names = [shortened(name, int(_WIDEST_NAMES / LETTER_WIDTH)) for name in names]
        self.left = max([20.0, *(8 + LETTER_WIDTH * len(name) for name in self.names)])
        self.height = _TOP + _ROW * len(names) + _BOTTOM
        self._low, self._high, self._bend = low, high, bend

    def x(self, value: float) -> float:
        return scale(self._bend(value), self._low, self._high, self.left, WIDTH - _RIGHT)

    def middle(self, index: int) -> float:
        return _TOP + _ROW * index + _ROW / 2

    def axis(self, label: str) -> list[str]:
        bottom = self.height - _BOTTOM
        shapes = [
            text(self.left - 6, self.middle(index) + 4, name, anchor="end") for index, name in enumerate(self.names)
        ]
        for value in self._ticks():
            x = self.x(value)
            shapes += [
                line(x, _TOP, x, bottom, color=INK if value == 0 else GRAY, width=0.6),
                text(x, bottom + 13, tick_text(value), anchor="middle"),
            ]
        return [*shapes, text((self.left + WIDTH - _RIGHT) / 2, self.height - 6, label, anchor="middle")]

    def _ticks(self) -> list[float]:
        if self._bend(2.0) == 2.0:
            return ticks(self._low, self._high)
        # On an axis with few powers of ten, ticks are also at three times each power.
        steps = (1, 3) if self._high - self._low < 8 else (1,)
        values = [sign * step * 10.0**power for power in range(7) for step in steps for sign in (-1, 1)]
        return sorted(value for value in [0.0, *values] if self._low <= self._bend(value) <= self._high)
