"""Text that a page shows: escaped, without credentials, and cut where it is long."""

import html
import unicodedata

from pipeline.credentials import without_credentials

LONGEST_NAME = 40
# Control characters are no text, and a lone surrogate, which JSON can hold, cannot be written as UTF-8.
_UNPRINTABLE = ("Cc", "Cs")
_LEFT_OUT = "…"


def escape(text: str) -> str:
    """Return text as HTML and SVG show it literally; credentials in URIs are replaced by an ellipsis.

    Everything that a page shows goes through here: class names, paths and messages come from strangers.
    """
    printable = "".join(" " if c == "\n" else "\ufffd" if unicodedata.category(c) in _UNPRINTABLE else c for c in text)
    return html.escape(without_credentials(printable))


def shortened(name: str, limit: int = LONGEST_NAME) -> str:
    """Return a name of at most `limit` characters, without credentials, with an ellipsis for the rest."""
    # Credentials are left out before the cut, which may go through one.
    name = without_credentials(name)
    return name if len(name) <= limit else f"{name[: limit - 1]}{_LEFT_OUT}"


def short_name(model: str) -> str:
    """Return a model's name without the folders before it, for a heading."""
    model = without_credentials(model)
    return shortened(model.rstrip("/").rpartition("/")[2] or model)
