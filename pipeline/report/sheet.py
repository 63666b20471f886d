"""Contact sheets: one picture of many."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import ConfigError
from pipeline.pictures import as_picture

_CAPTION_HEIGHT = 18  # pixels under each picture: one line of the 12-pixel font
_GAP = 6  # pixels between cells


def contact_sheet(images: Sequence[np.ndarray], labels: Sequence[str], columns: int, *, cell: int = 112) -> Image.Image:
    """Arrange pictures in a grid, each with its caption.

    Small pictures are enlarged by an integer factor without smoothing, so that pixels stay square; pictures larger than
    a cell are shrunk.

    Args:
        images: uint8 arrays [H, W, C] with 1 or 3 channels; sizes may differ.
        labels: one caption per picture, which is cut if it is too long for its cell.
        columns: number of pictures per row.
        cell: side of the square for each picture, in pixels.

    Raises:
        ConfigError: there are no pictures, or the number of labels differs, or there are no columns.
    """
    if not images or len(images) != len(labels) or columns < 1:
        raise ConfigError(
            f"a contact sheet needs pictures, as many labels, and columns: got {len(images)}, {len(labels)}, {columns}"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    step_x, step_y = cell + _GAP, cell + _CAPTION_HEIGHT + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = _GAP + index % columns * step_x, _GAP + index // columns * step_y
        picture = _fit(image, cell)
        sheet.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))
        draw.text((x, y + cell + 1), _cut(label, font, cell), fill="black", font=font)
    return sheet


def _fit(image: np.ndarray, cell: int) -> Image.Image:
    picture = shrunk(image, cell).convert("RGB")
    factor = max(1, cell // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def shrunk(image: np.ndarray, longest: int) -> Image.Image:
    """Return a picture whose longer side is at most `longest` pixels.

    Args:
        image: uint8 [H, W, C] with 1 or 3 channels.
        longest: longest side in pixels that a picture may have. Larger ones are shrunk to it, others returned
            unchanged.
    """
    picture = as_picture(image)
    side = max(picture.size)
    if side <= longest:
        return picture
    width, height = (max(1, length * longest // side) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while len(text) > 2 and font.getlength(text) > width:
        text = text[:-3] + ".."
    return text


def png(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
