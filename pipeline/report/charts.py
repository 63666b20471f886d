"""Plots over two axes: curves and histograms. The same values give the same markup."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.report.svg import (
    COLORS,
    FONT,
    GRAY,
    LETTER_WIDTH,
    WIDTH,
    Plot,
    dot,
    finite,
    line,
    plot,
    polyline,
    rectangle,
    scale,
    text,
    tick_text,
    ticks,
    value_range,
)

_HEIGHT = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 22, 36
_LEGEND_ROW = 16
# Largest number of points of a curve: with more points than pixels it looks the same.
_MOST_POINTS = 400


def curves(series: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str) -> Plot:
    """Draw a line for each named series of (x, y); values that are not finite are left out.

    Args:
        series: name → points, ascending in x. A single point is drawn as a dot. Beyond 400 points, every second,
            third, ... is drawn, and the last.
        x_label, y_label: captions of the axes.
    """
    drawn = {name: _thinned([(x, y) for x, y in points if finite([x, y])[1:]]) for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return _empty(f"{y_label} by {x_label}")
    xs = value_range([x for points in drawn.values() for x, _ in points])
    ys = value_range([y for points in drawn.values() for _, y in points])
    shapes = [*_axes(xs, ys, x_label, y_label), *_legend(list(drawn))]
    for index, points in enumerate(drawn.values()):
        color = COLORS[index % len(COLORS)]
        placed = [(_x(x, xs), _y(y, ys)) for x, y in points]
        shapes += [polyline(placed, color=color)] if len(placed) > 1 else [dot(*placed[0], color=color, radius=3.5)]
    height = _HEIGHT + _LEGEND_ROW * len(_rows_of(list(drawn)))
    return plot(f"{y_label} by {x_label}: {', '.join(drawn)}", height, shapes)


def histogram(
    values: Sequence[float], *, x_label: str, num_bins: int = 24, x_range: tuple[float, float] | None = None
) -> Plot:
    """Draw how many values lie in each of equally wide bins.

    Args:
        values: values to count; those that are not finite are left out.
        x_label: what the values are.
        num_bins: number of bins.
        x_range: ends of the axis; by default the smallest and largest value. Values beyond it count in the outermost
            bins.
    """
    kept = finite(values)
    if not kept:
        return _empty(x_label)
    xs = x_range or value_range(kept)
    counts, edges = np.histogram(np.clip(kept, *xs), bins=num_bins, range=xs)
    ys = (0.0, float(counts.max()))
    shapes = _axes(xs, ys, x_label, "images")
    for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            top = _y(count, ys)
            shapes.append(
                rectangle(_x(low, xs) + 0.5, top, _x(high, xs) - _x(low, xs) - 1, _y(0, ys) - top, color=COLORS[0])
            )
    return plot(f"distribution of {x_label}", _HEIGHT, shapes)


def _x(value: float, xs: tuple[float, float]) -> float:
    return scale(value, *xs, _LEFT, WIDTH - _RIGHT)


def _y(value: float, ys: tuple[float, float]) -> float:
    return scale(value, *ys, _HEIGHT - _BOTTOM, _TOP)


def _axes(xs: tuple[float, float], ys: tuple[float, float], x_label: str, y_label: str) -> list[str]:
    """Draw grid lines with their numbers, and what the axes show."""
    shapes = []
    for value in ticks(*ys):
        y = _y(value, ys)
        shapes += [line(_LEFT, y, WIDTH - _RIGHT, y), text(_LEFT - 5, y + 4, tick_text(value), anchor="end")]
    for value in ticks(*xs, 6):
        x = _x(value, xs)
        shapes += [
            line(x, _HEIGHT - _BOTTOM, x, _HEIGHT - _BOTTOM + 4, color=GRAY),
            text(x, _HEIGHT - _BOTTOM + 16, tick_text(value), anchor="middle"),
        ]
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    shapes.append(text(middle, _HEIGHT - 5, x_label, anchor="middle"))
    shapes.append(text(2, FONT - 1, y_label))
    return shapes


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = -(-len(points) // _MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _rows_of(names: list[str]) -> list[list[str]]:
    """Return the rows of a legend, as many names in each as fit; none for a single curve."""
    rows: list[list[str]] = []
    left = 0.0
    for name in names if len(names) > 1 else []:
        width = _legend_width(name)
        if not rows or width > left:
            rows.append([])
            left = WIDTH - _LEFT
        rows[-1].append(name)
        left -= width
    return rows


def _legend_width(name: str) -> float:
    # A letter of the font is a little more than half as wide as it is high.
    return 26 + LETTER_WIDTH * len(name)


def _legend(names: list[str]) -> Iterator[str]:
    index = 0
    for row, group in enumerate(_rows_of(names)):
        x, y = float(_LEFT), _HEIGHT + _LEGEND_ROW * row + 9
        for name in group:
            yield rectangle(x, y - 8, 12, 8, color=COLORS[index % len(COLORS)])
            yield text(x + 16, y, name)
            x += _legend_width(name)
            index += 1


def _empty(label: str) -> Plot:
    return plot(label, 40, [text(_LEFT, 24, f"{label}: no finite value to draw")])
