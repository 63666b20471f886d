"""Read a page as a browser does, far enough to say that it is whole, loads nothing and runs nothing."""

import re
from html.parser import HTMLParser

# Pages with more pictures than fit show a sample, and say so.
_MAX_PAGE_BYTES = 3_000_000
_VOID = {"meta", "img"}
# SVG elements that stand alone close themselves.
_ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "table", "thead", "tbody", "tr", "th"),
    *("td", "figure", "figcaption", "img", "details", "summary", "a"),
    *("svg", "line", "rect", "circle", "polyline", "path", "text", "image"),
}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        tags: of all elements, in order.
        texts: of all elements but `style`.
        sources: where pictures come from.
        links: to other pages, relative to this one.
    """

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style" and data.strip():
            self.texts.append(data)

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _ALLOWED, f"<{tag}>"
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{name}={value}"
            if tag == "a" and name == "href":
                assert re.fullmatch(r"[\w%.-][\w%./-]*", str(value)), value
                self.links.append(str(value))
            elif name in ("src", "href", "xlink:href"):
                assert str(value).startswith("data:image/png;base64,"), value
                self.sources.append(str(value))
            if name == "style":
                assert "url(" not in str(value), value


def check_page(markup: str) -> Page:
    """Check that a page is balanced, holds known elements alone, and neither loads nor runs anything."""
    page = Page(markup)
    assert len(markup.encode()) < _MAX_PAGE_BYTES
    assert markup.startswith("<!doctype html>")
    assert "default-src 'none'" in markup
    assert 'name="viewport"' in markup
    style = re.search(r"<style>(.*?)</style>", markup, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    return page
