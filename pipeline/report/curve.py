"""Curves as pictures, for files that are looked at alone. Importing it takes a second, for matplotlib."""

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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same curve gives the same bytes
    return buffer.getvalue()
