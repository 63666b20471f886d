"""Text that a page shows: escaped, without credentials, and cut where it is long."""

import html
import re
import unicodedata

LONGEST_NAME = 40
# Control characters are no text, and a lone surrogate, which JSON can hold, cannot be written as UTF-8.
_UNPRINTABLE = ("Cc", "Cs")
_LEFT_OUT = "…"
# `s3://KEY:SECRET@bucket`, also with a slash in the secret; and `https://TOKEN@host`.
_USER = re.compile(r"(?<=://)(?:[^\s@]*:[^\s@]*|[^\s/@]*)@")
# Signed web addresses carry their signature behind the question mark.
_QUERY = re.compile(r"(?<=://)([^\s?]*)\?[^\s'\"]*")


def escape(text: str) -> str:
    """Return text as HTML and SVG show it literally; credentials in URIs are replaced by an ellipsis.

    Everything that a page shows goes through here: class names, paths and messages come from strangers.
    """
    printable = "".join(" " if c == "\n" else "\ufffd" if unicodedata.category(c) in _UNPRINTABLE else c for c in text)
    return html.escape(without_credentials(printable))


def without_credentials(text: str) -> str:
    """Replace user names, passwords and queries of the URIs in a text by an ellipsis."""
    return _QUERY.sub(rf"\1?{_LEFT_OUT}", _USER.sub(f"{_LEFT_OUT}@", text))


def shortened(name: str, limit: int = LONGEST_NAME) -> str:
    """Return a name of at most `limit` characters, with an ellipsis for the rest."""
    return name if len(name) <= limit else f"{name[: limit - 1]}{_LEFT_OUT}"


def short_name(model: str) -> str:
    """Return a model's name without the folders before it, for a heading."""
    return shortened(model.rstrip("/").rpartition("/")[2] or model)
