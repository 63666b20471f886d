"""Find credentials in URIs, and leave them out of whatever is written or printed. Standard library only.

They are recognized twice: by their place in a URI, and by their text, once a URI that holds them was opened. The second
way also finds them in messages of libraries that quote only a part of a URI. All else of a URI stays as it is.
"""

import re
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

_LEFT_OUT = "…"
# Paths, also of members of an archive: `@`, `?` and `#` are parts of names.
_PATHS = {"file", "local", "memory", "zip", "tar", "libarchive"}
# A container, an organization or a revision stands before the `@`.
_PLACES = {"abfs", "abfss", "wasb", "wasbs", "adl", "az", "oci", "github", "git", "hf"}
# The name of a user stands before the `@`, perhaps with a password.
_USERS = {"sftp", "ssh", "ftp", "hdfs", "arrow_hdfs", "webhdfs", "smb"}
_HTTP = {"http", "https"}
_SCHEME = re.compile(r"\w+$")
_LONGEST_SCHEME = 32
# Beginnings of a URI after which an `@` belongs to the path: a port, an IPv6 address, the name of an S3 access point.
_NO_PASSWORD = re.compile(r"[^:]*:\d{1,5}(?:[/?#]|$)|\[|arn:")
_PARAMETER = re.compile(r"([?&#])([\w.%-]{1,80})=([^\s&'\"]+)")
# Words of a parameter's name: `X-Amz-Signature`, `access_token`, `AccessKeyId`.
_SECRET_NAME = re.compile(
    r"(?:^|[-_.])(?:sig|signature|token|secret|password|passwd|passphrase|pwd|credentials?|key|auth|authorization|jwt"
    r"|(?:api|access|secret|auth)key|accesskeyid|(?:access|auth|sas|session|security)token)(?:$|[-_.])",
    re.IGNORECASE,
)
_INNER_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# A query without names; a `?` in a pattern of file names is followed by a folder or a suffix.
_BARE_QUERY = re.compile(r"\?([\w.%+~-]{20,}={0,2})(?=[^\w.%+~=/?#-]|$)")
_SUFFIX = re.compile(r"\.\w{1,8}$")
_WORD = re.compile(r"\S+")
# Shorter texts stand in messages by accident.
_SHORTEST_SECRET = 8
# Names of users are no secrets; names of access keys are longer.
_SHORTEST_KEY_NAME = 16
# A list of signed addresses has a secret for each. Each message is searched for all of them.
_MOST_SECRETS = 1000


class Secrets:
    """The latest secrets that were noted, at most 1000."""

    def __init__(self) -> None:
        self._noted: dict[str, None] = {}
        self._lock = Lock()
        #: Longest first: one may be a part of another. Replaced as a whole, so that other threads may read it.
        self.longest_first: list[str] = []

    def add(self, secrets: Iterable[str]) -> None:
        """Note secrets, or note again that they are in use."""
        with self._lock:
            before = self._noted.keys() & (secrets := list(secrets))
            for secret in secrets:
                self._noted.pop(secret, None)
                self._noted[secret] = None
            if len(before) < len(set(secrets)):
                for secret in list(self._noted)[:-_MOST_SECRETS]:
                    del self._noted[secret]
                self.longest_first = sorted(self._noted, key=len, reverse=True)


_known = Secrets()


def without_credentials(text: str) -> str:
    """Replace passwords, tokens and signatures of the URIs in a text, and secrets known by now, by an ellipsis.

    It never replaces twice. It may replace more than a secret: before an `@` behind a slash, as in
    `s3://KEY:SE/CRET@bucket`, the secret reaches to the last `@` of the path.
    """
    for secret in _known.longest_first:
        text = text.replace(secret, _LEFT_OUT)
    if "://" not in text and (text.startswith(("/", ".", "~")) or len(text.split(maxsplit=1)) < 2):
        return text  # a path
    return _WORD.sub(lambda word: _mask_word(word[0]), text)


def _mask_word(word: str) -> str:
    first, *_ = word.split("://", 1)
    masked = [_mask_parameters("", first), *(_mask(scheme, rest) for scheme, rest in _uris(word))]
    return "://".join(masked)


def _uris(text: str) -> Iterator[tuple[str, str]]:
    """Yield the scheme in lower case of each URI in a text, and what follows up to that of the next one."""
    before, *rests = text.split("://")
    for rest in rests:
        # In a chain, other text precedes it: `zip://x.parquet::https://host`.
        found = _SCHEME.search(before[-_LONGEST_SCHEME:])
        yield found[0].lower() if found else "", rest
        before = rest


def _mask(scheme: str, rest: str) -> str:
    if scheme in _PATHS:
        return rest
    if user := _user(scheme, rest):
        name = user.partition(":")[0]
        rest = f"{f'{name}:' if scheme in _USERS else ''}{_LEFT_OUT}{rest[len(user) :]}"
    return _mask_parameters(scheme, rest)


def _user(scheme: str, rest: str) -> str:
    """Return the user of a URI, `KEY:SECRET` or `TOKEN`, if it holds a secret; otherwise nothing."""
    if scheme in _PLACES:
        return ""
    head = rest.partition("/")[0]
    authority = re.split("[?#]", head, maxsplit=1)[0]
    if "@" in authority:
        user = authority.rpartition("@")[0]
    elif ":" in authority and not _NO_PASSWORD.match(rest):
        # A secret with a slash or a question mark in it. Another URI of a chain may follow.
        place = head if "@" in head else rest.partition("::")[0].partition("?")[0]
        user = place.rpartition("@")[0]
    else:
        return ""
    _, colon, password = user.partition(":")
    return user if scheme in _HTTP or (password if scheme in _USERS else colon) else ""


def _mask_parameters(scheme: str, rest: str) -> str:
    rest = _PARAMETER.sub(
        lambda found: f"{found[1]}{found[2]}={_LEFT_OUT}" if _is_secret(scheme, found[1], found[2]) else found[0], rest
    )
    return _BARE_QUERY.sub(lambda found: f"?{_LEFT_OUT}" if _is_token(found[1]) else found[0], rest) if scheme else rest


def _is_secret(scheme: str, mark: str, name: str) -> bool:
    """Return whether a parameter holds a secret; `#` begins one on the web alone, where OAuth puts tokens there."""
    words = _INNER_CAPITAL.sub("_", unquote(name))
    return (mark != "#" or scheme in _HTTP) and _SECRET_NAME.search(words) is not None


def _is_token(query: str) -> bool:
    return (
        re.search(r"\d", query) is not None and re.search("[A-Za-z]", query) is not None and not _SUFFIX.search(query)
    )


def redacted(value: Any) -> Any:
    """Return plain data with the texts in it, except names of entries, as `without_credentials` returns them."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return {name: redacted(entry) for name, entry in value.items()}
    return [redacted(entry) for entry in value] if isinstance(value, list | tuple) else value


def remember_credentials(uri: str) -> None:
    """Take note of the secrets in a URI that is to be opened, so that `without_credentials` finds them by their text.

    Passwords and tokens below 8 characters are not noted, and of more than about a thousand the latest are kept.
    """
    if "@" in uri or "?" in uri or "#" in uri:
        found = [secret for scheme, rest in _uris(uri) for secret in _secrets_in(scheme, rest)]
        forms = [form for secret in found for form in (secret, unquote(secret), quote(secret, safe=""))]
        _known.add(form for form in forms if len(form) >= _SHORTEST_SECRET)


def _secrets_in(scheme: str, rest: str) -> list[str]:
    """Return the secrets in a URI without its scheme."""
    if scheme in _PATHS:
        return []
    user = _user(scheme, rest)
    name, colon, password = user.partition(":")
    found = [password if colon else user]
    found += [name] if len(name) >= _SHORTEST_KEY_NAME and scheme not in _USERS else []
    found += [value for mark, key, value in _PARAMETER.findall(rest) if _is_secret(scheme, mark, key)]
    return found + [query for query in _BARE_QUERY.findall(rest) if _is_token(query)]
