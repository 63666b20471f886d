"""Draw shapes and text as SVG, and choose scales and round ticks, for all plots."""

import math
from collections.abc import Iterable, Sequence
from typing import NewType

from pipeline.report.text import escape

# Markup of a plot. Only the functions of this package make it, and they escape all text.
Plot = NewType("Plot", str)

# Width of a plot, and size of its font, in units of a plot. A unit is about a pixel on a phone.
WIDTH = 400
FONT = 11
# Average width of a letter, to fit texts into boxes.
LETTER_WIDTH = 0.58 * FONT
# Okabe and Ito's colors, which people with color blindness tell apart (https://jfly.uni-koeln.de/color/).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
GRAY, INK = "#d8d8d8", "#333"


def plot(label: str, height: float, shapes: Iterable[str]) -> Plot:
    """Return a plot of shapes, 400 units wide, which a page scales.

    Args:
        label: description of the plot, for people who cannot see it.
        height: height in units of the plot.
        shapes: SVG markup of the shapes.
    """
    body = "".join(shapes)
    head = f'<svg viewBox="0 0 {WIDTH} {number(height)}" role="img" aria-label="{escape(label)}" font-size="{FONT}">'
    return Plot(f"{head}{body}</svg>")


def line(x1: float, y1: float, x2: float, y2: float, *, color: str = GRAY, width: float = 1) -> str:
    """Return a straight line."""
    ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
    return f'<line {ends} stroke="{color}" stroke-width="{number(width)}"/>'


def rectangle(x: float, y: float, width: float, height: float, *, color: str, opacity: float = 1) -> str:
    """Return a filled rectangle."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    faint = "" if opacity == 1 else f' fill-opacity="{number(opacity)}"'
    return f'<rect {place} fill="{color}"{faint}/>'


def dot(x: float, y: float, *, color: str, radius: float = 2.5) -> str:
    """Return a filled circle."""
    return f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" fill="{color}"/>'


def polyline(points: Sequence[tuple[float, float]], *, color: str) -> str:
    """Return a line through points."""
    path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>'


def text(x: float, y: float, content: str, *, anchor: str = "start", color: str = INK) -> str:
    """Return a line of text on the base line `y`; `anchor` is start, middle or end."""
    return f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}" fill="{color}">{escape(content)}</text>'


def number(value: float) -> str:
    """Return a number as briefly as 2 decimals can say it."""
    # Adding 0 makes no minus of a zero.
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def finite(values: Iterable[float | None]) -> list[float]:
    """Return the values that can be drawn."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and largest value, moved apart where they are equal, so that a scale can be made."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    room = abs(low) / 2 or 0.5
    return low - room, high + room


def scale(value: float, low: float, high: float, start: float, stop: float) -> float:
    """Return the place in [start, stop] of a value in [low, high]; a value outside it gets the nearer end."""
    share = (value - low) / (high - low)
    return start + min(1.0, max(0.0, share)) * (stop - start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Return the text at a tick."""
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.0e}"
