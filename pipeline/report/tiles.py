"""Pictures side by side, each with its caption and, for a sparse image, the outline of its kept patches."""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.sheet import png, shrunk
from pipeline.report.text import escape

# Pictures are stored no larger; a page shows them about as large.
LARGEST_SIDE = 112


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture with its caption.

    Attributes:
        picture: a PNG file.
        size: width and height of the picture, in pixels.
        caption: one or several lines of text.
        outline: SVG path in pixels of the picture; empty for none.
    """

    picture: bytes
    size: tuple[int, int]
    caption: str
    outline: str = ""


def tile(pixels: np.ndarray, caption: str, *, kept: Collection[int] | None = None, grid_size: int = 0) -> Tile:
    """Return a tile of a picture, which is shrunk if it is large.

    Args:
        pixels: uint8 [H, W, C] with 1 or 3 channels.
        caption: text below the picture.
        kept: patches to outline, numbered row by row. Nothing is outlined for None, or if all patches are kept.
        grid_size: number of patches in a row and in a column.
    """
    small = shrunk(pixels, LARGEST_SIDE)
    path = "" if kept is None or len(kept) == grid_size**2 else outline(kept, grid_size, small.size)
    return Tile(picture=png(small), size=small.size, caption=caption, outline=path)


def outline(kept: Collection[int], grid_size: int, size: tuple[int, int]) -> str:
    """Return the border between kept patches and all others, as an SVG path.

    Args:
        kept: kept patches, numbered row by row.
        grid_size: number of patches in a row and in a column.
        size: width and height of the picture, in pixels.
    """
    wide, high = size[0] / grid_size, size[1] / grid_size
    inside = {divmod(index, grid_size) for index in kept}
    steps = []
    for row, column in sorted(inside):
        x, y = column * wide, row * high
        if (row - 1, column) not in inside:
            steps.append(f"M{x:g} {y:g}h{wide:g}")
        if (row + 1, column) not in inside:
            steps.append(f"M{x:g} {y + high:g}h{wide:g}")
        if (row, column - 1) not in inside:
            steps.append(f"M{x:g} {y:g}v{high:g}")
        if (row, column + 1) not in inside:
            steps.append(f"M{x + wide:g} {y:g}v{high:g}")
    return "".join(steps)


def within(tiles: Sequence[Tile], budget: int) -> list[Tile]:
    """Return as many tiles, evenly spread, as have pictures of at most `budget` bytes together; one at least."""
    for count in range(len(tiles), 1, -1):
        chosen = [tiles[index * len(tiles) // count] for index in range(count)]
        if sum(len(one.picture) for one in chosen) <= budget:
            return chosen
    return list(tiles[:1])


def tiles_html(tiles: Sequence[Tile], columns: int | None = None) -> str:
    """Return tiles as HTML; in rows of `columns`, or as many as the screen is wide enough for."""
    # No wider than so many pictures at their largest.
    rows = (
        "" if columns is None else f"grid-template-columns:repeat({columns},minmax(0,1fr));max-width:{8.5 * columns}rem"
    )
    style = f' style="{rows}"' if rows else ""
    return f'<div class="tiles"{style}>{"".join(map(_figure, tiles))}</div>'


def _figure(one: Tile) -> str:
    width, height = one.size
    source = f"data:image/png;base64,{base64.b64encode(one.picture).decode()}"
    image = f'<image href="{source}" width="{width}" height="{height}"/>'
    path = f'<path d="{one.outline}"/>' if one.outline else ""
    caption = escape(one.caption)
    picture = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{caption}">{image}{path}</svg>'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
