"""Pages of text, tables, plots and pictures as one HTML file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pipeline.report.svg import Plot
from pipeline.report.text import escape
from pipeline.report.tiles import Tile, tiles_html

# Browsers then load nothing and run nothing, even if markup should slip in somewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 68rem; margin: 1.5rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p { max-width: 44rem; margin: .5rem 0; }
figure { margin: 0; } figcaption { color: #555; font-size: .85rem; line-height: 1.35; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td.words { text-align: left; min-width: 9rem; overflow-wrap: anywhere; }
th { border-bottom: 2px solid #888; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.2rem 2rem;
  margin: .8rem 0; }
.plots figure { max-width: 32rem; }
.plots svg { width: 100%; height: auto; display: block; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr)); gap: .6rem .5rem;
  margin: .8rem 0; }
.tiles svg { width: 100%; max-width: 8rem; height: auto; display: block; background: #eee; }
.tiles image { image-rendering: pixelated; }
.tiles path { fill: none; stroke: #e8590c; stroke-width: 1.5px; vector-effect: non-scaling-stroke; }
.tiles figcaption { font-size: .75rem; }
summary { cursor: pointer; }
"""
# Length in characters above which a cell counts as text: aligned to the left, and broken over several lines.
_WORDS = 28


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header; text is printed unchanged, numbers with at most two decimals.

    A page shows no header if all its names are empty.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a page: a heading, then text and all that follows it, each optional.

    Attributes:
        heading: heading of the section.
        text: paragraphs, with an empty line between them.
        links: links to other pages, each as its text and its path relative to this page.
        tables: tables after the text.
        plots: plots, each with its caption.
        pictures: PNG files, each with its caption.
        tiles: small pictures in rows.
        tile_columns: number of small pictures in a row; by default as many as there is room for.
        folded: whether only the heading shows until a reader opens the section.
    """

    heading: str
    text: str = ""
    links: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[tuple[str, Plot]] = ()
    pictures: Sequence[tuple[str, bytes]] = ()
    tiles: Sequence[Tile] = ()
    tile_columns: int | None = None
    folded: bool = False


def html_page(title: str, sections: Sequence[Section]) -> str:
    """Return a self-contained page: pictures are embedded, text is escaped, and credentials in URIs are left out."""
    body = "\n".join(map(_section, sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    heading = f"<h2>{escape(section.heading)}</h2>"
    parts = [f"<p>{escape(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph]
    if section.links:
        parts.append(f"<p>{' · '.join(_link(*link) for link in section.links)}</p>")
    parts += [_table(table) for table in section.tables]
    if section.plots:
        parts.append(f'<div class="plots">{"".join(_plot(*captioned) for captioned in section.plots)}</div>')
    parts += [_picture(caption, content) for caption, content in section.pictures]
    if section.tiles:
        parts.append(tiles_html(section.tiles, section.tile_columns))
    if section.folded:
        return "\n".join([f"<details><summary>{escape(section.heading)}</summary>", *parts, "</details>"])
    return "\n".join([heading, *parts])


def _link(name: str, path: str) -> str:
    # Quoted, so that no browser takes the beginning of the path for a scheme.
    target = escape(quote(path, errors="replace"))
    return f'<a href="{target}">{escape(name)}</a>'


def _plot(caption: str, drawn: Plot) -> str:
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def _picture(caption: str, content: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _table(table: Table) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    head = f"<thead><tr>{names}</tr></thead>" if any(table.header) else ""
    rows = "\n".join(f"<tr>{''.join(map(_table_cell, row))}</tr>" for row in table.rows)
    return f'<div class="wide"><table>{head}<tbody>\n{rows}\n</tbody></table></div>'


def _table_cell(value: str | float | None) -> str:
    words = ' class="words"' if isinstance(value, str) and len(value) > _WORDS else ""
    return f"<td{words}>{_cell(value)}</td>"


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    return escape(f"{value:.2f}" if isinstance(value, float) else str(value))


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
