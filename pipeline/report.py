"""Contact sheets, curves and HTML reports."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import ConfigError

_CAPTION_HEIGHT = 18  # pixels under each picture: one line of the 12-pixel font
_GAP = 6  # pixels between cells
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top; }
figcaption { color: #555; font-size: .85rem; } img { max-width: 100%; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #888; }
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header; text is printed unchanged, numbers with at most two decimals."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page: a heading, then text, tables and captioned PNG pictures, each optional."""

    heading: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, bytes]] = ()


def contact_sheet(images: Sequence[np.ndarray], labels: Sequence[str], columns: int, *, cell: int = 112) -> Image.Image:
    """Arrange pictures in a grid, each with its caption.

    Small pictures are enlarged by an integer factor without smoothing, so that pixels stay square; pictures larger than
    a cell are shrunk.

    Args:
        images: uint8 arrays [H, W, C] with 1 or 3 channels; sizes may differ.
        labels: one caption per picture; cut if too long for its cell.
        columns: pictures per row.
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
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
    longest = max(picture.size)
    if longest > cell:
        return picture.resize(tuple(max(1, side * cell // longest) for side in picture.size), Image.Resampling.BOX)  # type: ignore[arg-type]
    factor = cell // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while len(text) > 2 and font.getlength(text) > width:
        text = text[:-3] + ".."
    return text


def png(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


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


def bars(names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str, label: str) -> bytes:
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


def html_page(title: str, sections: Sequence[Section]) -> str:
    """Return a self-contained page: pictures are embedded, and all text is escaped."""
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.heading)}</h2>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph]
    parts += [_table(table) for table in section.tables]
    parts += [_picture(caption, content) for caption, content in section.pictures]
    return "\n".join(parts)


def _picture(caption: str, content: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    text = html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    rows = "\n".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    return html.escape(f"{value:.2f}" if isinstance(value, float) else str(value))


def text_table(table: Table) -> str:
    """Return the table as plain text, for a terminal or a log."""
    cells = [list(table.header), *([html.unescape(_cell(value)) for value in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(table: Table) -> str:
    """Return the table in Markdown."""
    rows = [list(table.header), ["---"] * len(table.header)]
    rows += [[html.unescape(_cell(value)) for value in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
