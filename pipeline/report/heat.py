"""Plots of tables of numbers: a shaded square for each."""

from collections.abc import Sequence

from pipeline.report.svg import COLORS, FONT, LETTER_WIDTH, WIDTH, Plot, plot, rectangle, text
from pipeline.report.text import shortened

_WIDEST_NAMES = 84
# Above this share of the darkest color, numbers are white.
_DARK = 0.55
# Padding of a square around its number, in widths of a letter.
_ROOM = 1.15


def heat(counts: Sequence[Sequence[int]], names: Sequence[str], *, rows: str, columns: str) -> Plot:
    """Draw a square table of counts, each square as dark as its share of its row, with its number where it fits.

    Args:
        counts: n rows of n counts, none negative.
        names: names of the rows, which are also those of the columns.
        rows, columns: captions of the rows and the columns.
    """
    labels = [shortened(name, int(_WIDEST_NAMES / LETTER_WIDTH)) for name in names]
    left = max([14.0, *(LETTER_WIDTH * len(label) + 8 for label in labels)])
    side = (WIDTH - left - 2) / max(1, len(names))
    top = 18.0
    shapes = [text(2, FONT, f"{rows} ↓  {columns} →")]
    for row, values in enumerate(counts):
        shapes.append(text(left - 6, top + (row + 0.5) * side + 4, labels[row], anchor="end"))
        for column, count in enumerate(values):
            share = count / (sum(values) or 1)
            shapes += _square(left + column * side, top + row * side, side, share, str(count))
    bottom = top + len(names) * side
    for column, label in enumerate(labels):
        fits = label if LETTER_WIDTH * len(label) <= side else str(column)
        shapes.append(text(left + (column + 0.5) * side, bottom + 14, fits, anchor="middle"))
    return plot(f"{rows} by {columns}", bottom + 20, shapes)


def grid(shares: Sequence[Sequence[float]], *, label: str) -> Plot:
    """Draw a grid of shares between 0 and 1, each square as dark as its share, with the percentage where it fits.

    Args:
        shares: rows of shares, all of equal length.
        label: what the shares are.
    """
    # Half of a plot's width: it shows places in an image.
    size = WIDTH / 2
    side = size / max(1, len(shares))
    shapes = []
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            shapes += _square(column * side, row * side, side, share, str(round(100 * share)))
    return plot(label, size, shapes)


def _square(x: float, y: float, side: float, share: float, content: str) -> list[str]:
    shade = rectangle(x + 0.5, y + 0.5, side - 1, side - 1, color=COLORS[0], opacity=0.06 + 0.94 * share)
    if content == "0" or LETTER_WIDTH * len(content) * _ROOM > side:
        return [shade]
    color = "#fff" if share > _DARK else "#333"
    return [shade, text(x + side / 2, y + side / 2 + 4, content, anchor="middle", color=color)]
