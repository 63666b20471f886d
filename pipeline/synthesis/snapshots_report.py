"""The part of a synthesis's page that shows how images form."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.report.charts import curves
from pipeline.report.page import Section
from pipeline.report.text import shortened
from pipeline.report.tiles import Tile, tile


def snapshots_section(heading: str, document: Mapping[str, Any], names: Sequence[str], grid_size: int) -> Section:
    """Return a row of pictures for each image, and the losses by step.

    Args:
        heading: heading of the section.
        document: content of `forming.json`.
        names: names of the teacher's classes.
        grid_size: number of patches in a row and in a column.
    """
    steps: list[int] = document["steps"]
    labels: list[int] = document["labels"]
    note = (
        f"The first {len(labels)} images of the first part, a row each, before the first step and after steps "
        f"{', '.join(map(str, steps[1:]))}. An orange line surrounds the patches that were alive then."
    )
    if len(set(steps)) < len(steps):
        note += " All images of the part ended before the last of these steps."
    tiles = [
        _tile(document, row, column, f"{shortened(names[label], 16)} · {step}", grid_size)
        for row, label in enumerate(labels)
        for column, step in enumerate(steps)
    ]
    losses = {name: [(float(step), value) for step, value in points] for name, points in document["losses"].items()}
    plots = [
        (f"{name}, mean over the images of the part", curves({name: points}, x_label="step", y_label=name))
        for name, points in losses.items()
    ]
    return Section(heading=heading, text=note, plots=plots, tiles=tiles, tile_columns=len(steps))


def _tile(document: Mapping[str, Any], row: int, column: int, caption: str, grid_size: int) -> Tile:
    with Image.open(io.BytesIO(base64.b64decode(document["pictures"][column][row]))) as picture:
        pixels = np.asarray(picture)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return tile(pixels, caption, kept=document["kept"][column][row], grid_size=grid_size)
