"""Find credentials in URIs, and leave them out of whatever is written or printed. Standard library only.

They are recognized twice: by their place in a URI, and by their text, once a URI that holds them was opened. The second
way also finds them in messages of libraries that quote only a part of a URI.
"""

import re
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

_LEFT_OUT = "…"
# Signed web addresses carry their signature behind the question mark, and some clients of OAuth behind `#`.
_QUERY = re.compile(r"\?[^'\"]*|#[^'\"=]{1,80}=[^'\"]*")
_SECRET_NAME = re.compile(r"sig|token|secret|passw|credential|key|auth", re.IGNORECASE)
# A parameter of an address that is quoted without its beginning.
_PARAMETER = re.compile(r"([?&][\w.%-]{1,80}=)[^\s&'\"]+")
_WORD = re.compile(r"\S+")
# Shorter texts stand in messages by accident.
_SHORTEST_SECRET = 8
# Names of users are no secrets; names of access keys are longer.
_SHORTEST_KEY_NAME = 16
_known: set[str] = set()


def without_credentials(text: str) -> str:
    """Replace user names, passwords and queries of the URIs in a text, and secrets known by now, by an ellipsis.

    It may replace more than a secret, such as `8080/x` in `http://host:8080/x@y`, and never replaces twice.
    """
    # Longest first: one may be a part of another.
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, _LEFT_OUT)
    if "://" in text:
        text = _WORD.sub(lambda word: _mask_uris(word[0]), text)
    return _PARAMETER.sub(lambda found: f"{found[1]}{_LEFT_OUT}" if _SECRET_NAME.search(found[1]) else found[0], text)


def _mask_uris(word: str) -> str:
    first, *rest = word.split("://")
    if not rest:
        return word
    masked = "://".join(map(_mask_user, rest))
    return f"{first}://{_QUERY.sub(lambda query: f'{query[0][0]}{_LEFT_OUT}', masked)}"


def _mask_user(rest: str) -> str:
    """Mask the user of a URI without its scheme: `KEY:SECRET@bucket`, even with a slash in SECRET, or `TOKEN@host`."""
    # Another URI of a chain may follow, as in `zip://x.parquet::https://TOKEN@host`.
    place = rest.partition("::")[0].partition("?")[0]
    authority = rest.partition("/")[0]
    user = (place if ":" in authority and "@" in place else authority).rpartition("@")[0]
    return f"{_LEFT_OUT}{rest[len(user) :]}" if user else rest


def redacted(value: Any) -> Any:
    """Return plain data with the texts in it, except names of entries, as `without_credentials` returns them."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return {name: redacted(entry) for name, entry in value.items()}
    return [redacted(entry) for entry in value] if isinstance(value, list | tuple) else value


@lru_cache(maxsize=4096)
def remember_credentials(uri: str) -> None:
    """Take note of the secrets in a URI that is to be opened, so that `without_credentials` finds them by their text.

    Passwords and tokens below 8 characters are not noted.
    """
    for place in uri.split("::"):
        _, separator, rest = place.partition("://")
        if separator:
            for secret in _secrets_in(rest):
                _known.update({secret, unquote(secret), quote(secret, safe="")})


def _secrets_in(rest: str) -> list[str]:
    """Return the secrets in a URI without its scheme."""
    place, _, query = rest.partition("?")
    user, _, _ = place.rpartition("@")
    name, colon, password = user.partition(":")
    # A slash before any colon begins a path, which may hold an `@`.
    found = [] if "/" in name else [password if colon else user, name if len(name) >= _SHORTEST_KEY_NAME else ""]
    found += [value for key, value in parse_qsl(query) if _SECRET_NAME.search(key)]
    found += [] if "=" in query else [query]
    return [secret for secret in found if len(secret) >= _SHORTEST_SECRET]
