"""Curves and bars as pictures, for files that are looked at alone. Importing it takes a second, for matplotlib."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure


def curve(series: Mapping[str, Sequence[float]], *, title: str, x_label: str, y_label: str) -> bytes:
    """Plot a line for each named series of values at 1, 2, 3, ...; return the bytes of a PNG file."""
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, values in series.items():
        # A single value would be an invisible line.
        axes.plot(range(1, len(values) + 1), values, label=name, marker="o" if len(values) == 1 else None)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    if series:
        axes.legend()
    return _saved(figure)


def plot_bars(names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str, label: str) -> bytes:
    """Plot a row of horizontal bars for each name, one for each named series; return the bytes of a PNG file."""
    figure = Figure(figsize=(7.2, 1.2 + 0.22 * len(names)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        places = [row + (number - (len(series) - 1) / 2) * height for row in range(len(names))]
        axes.barh(places, values, height, label=name)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=label)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return _saved(figure)


def _saved(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same figures give the same bytes
    return buffer.getvalue()
