"""Find the file system and path that a URI names. Only this module decides it, so that all jobs read paths alike.

A string is a URI only if it says so: `s3://bucket/key`, `file:///data`, or a chain such as
`simplecache::s3://bucket/key`. Any other string is a local path and is taken literally (`::`, `*`, `[`, `#`, `%20` and
`://` included), except that a leading `~` is the home folder. fsspec itself would cut a local path, or the key of an
object, at `::`.

The path of a `file:` URI is taken literally too: `%20` is no space, as in fsspec, so a folder `my set` is
`file:///data/my set`, not what `Path.as_uri` returns. Between its slashes stands no host but `localhost` (RFC 8089).
"""

import inspect
import logging
import os
import posixpath
import re
from pathlib import PurePath
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.chained import ChainedFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.credentials import remember_credentials, without_credentials
from pipeline.errors import DatasetError, as_line
from pipeline.transient import driver_errors

# Number of files to read at a time if each is small, or little of it is needed: each takes a round trip to the store.
READ_THREADS = 32
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
# RFC 8089 also allows a single slash.
_LOCAL_URI = re.compile(r"(?:file|local)://(?:localhost(?=/))?|file:(?=/)", re.IGNORECASE)
# Errors of the storage backends for a location that cannot be read or written. FileNotFoundError and PermissionError
# are OSErrors; an unknown scheme is a ValueError, a missing driver an ImportError.
_LOCATION_ERRORS = (OSError, ValueError, ImportError)
# Folders in which Ray unpacks the packages of `ray job submit --working-dir` and `py_modules`, on every node.
_RAY_PACKAGES = ("working_dir_files", "py_modules_files")
# gcsfs also logs tracebacks of the errors that it raises, and without a handler Python prints them.
logging.getLogger("gcsfs").addHandler(logging.NullHandler())


def location_errors() -> tuple[type[BaseException], ...]:
    """Return all errors that reading or writing a location may raise."""
    return (*_LOCATION_ERRORS, *driver_errors())


def reason(error: BaseException) -> str:
    """Return type and text of a library's error on one line, without credentials."""
    return without_credentials(as_line(f"{type(error).__name__}: {error}"))


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI or plain local path, and the path on it.

    Raises:
        DatasetError: the scheme is unknown or its driver is not installed; no path can be so; or a `file:` URI names
            another machine.
    """
    if not isinstance(uri, str):
        raise DatasetError(f"a location is text, not {uri!r:.80}: give str(...) of a path")
    if "\0" in uri:
        raise DatasetError(f"cannot open {uri!r}: no path has a null character")
    protocol = _protocol(uri)
    if protocol is None:
        _check_host(uri)
        return fsspec.filesystem("file"), _local_path(uri)
    remember_credentials(uri)
    try:
        return _make(protocol, uri)
    # If a URI lacks a host or organization, fsspec raises a bare TypeError or AttributeError.
    except (*location_errors(), TypeError, AttributeError) as error:
        raise DatasetError(f"cannot open {uri!r}: {as_line(error)}") from error


def _make(protocol: str, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    kind: Any = fsspec.get_filesystem_class(protocol)
    if _chains(kind):
        return url_to_fs("::".join(map(_with_lower_scheme, uri.split("::"))))
    uri = _with_lower_scheme(uri)
    fs = fsspec.filesystem(protocol, **kind._get_kwargs_from_urls(uri))
    _reconnect(fs)
    return fs, kind._strip_protocol(uri)


def _reconnect(fs: Any) -> None:
    """Connect to an SFTP server again if the connection has ended: fsspec keeps it for the life of the process."""
    transport = getattr(getattr(fs, "client", None), "get_transport", lambda: None)()
    if transport is not None and not transport.is_active():
        fs._connect()


def _with_lower_scheme(uri: str) -> str:
    """Return the URI as fsspec reads it; `S3://` is the same as `s3://` (RFC 3986)."""
    return _SCHEME.sub(lambda scheme: scheme[0].lower(), uri, count=1) if _SCHEME.match(uri) else uri


def _protocol(uri: str) -> str | None:
    """Return the protocol that a URI names first; None for a local path."""
    if _LOCAL_URI.match(uri):
        return None
    match = _SCHEME.match(uri)
    if match:
        return match[1].lower()
    # `simplecache::s3://bucket/key`: a bare protocol, followed by something that is clearly a URI.
    first, _, rest = uri.partition("::")
    is_chain = first in fsspec.available_protocols() and (_LOCAL_URI.match(rest) or _protocol(rest) is not None)
    return first if is_chain else None


def _chains(kind: type[fsspec.AbstractFileSystem]) -> bool:
    """Return whether a file system works on top of another one, named after `::`, as zip and the caches do."""
    takes = inspect.signature(kind.__init__).parameters.keys()
    return issubclass(kind, ChainedFileSystem) or not takes.isdisjoint({"fo", "target_protocol"})


def _check_host(uri: str) -> None:
    """Refuse a `file://HOST/...`, which would be read as a path from the working folder on."""
    match = _LOCAL_URI.match(uri)
    host = uri[match.end() :].partition("/")[0] if match and match[0].endswith("//") else ""
    if host and not host.startswith((".", "~")):
        raise DatasetError(
            f"{uri!r} names the machine {host!r}: a location on this one has three slashes, file:///FOLDER"
        )


def _local_path(uri: str) -> str:
    match = _LOCAL_URI.match(uri)
    path = os.path.expanduser(uri[match.end() :] if match else uri)
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    # `abspath` is not used, because it resolves `..` after a symbolic link wrongly.
    here = "" if os.path.isabs(path) else _working_folder(uri)
    return os.path.join(here, "" if path == "." else path).rstrip("/") or "/"


def _working_folder(uri: str) -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise DatasetError(f"cannot open {uri!r}: the working folder was deleted, go to one that is there") from error


def join(uri: str, *names: str) -> str:
    """Append path segments to `uri`; in a chain, to the innermost path (`zip://HERE::s3://...`)."""
    protocol = _protocol(uri)
    if protocol is None or "::" not in uri:
        return posixpath.join(uri, *names)
    kind = fsspec.get_filesystem_class(protocol)
    if not _chains(kind):
        return posixpath.join(uri, *names)
    first, _, rest = uri.partition("::")
    if "://" in first:
        return f"{posixpath.join(first, *names)}::{rest}"
    if issubclass(kind, ChainedFileSystem):
        return f"{first}::{join(rest, *names)}"
    return f"{first}://{posixpath.join(*names)}::{rest}"


def is_there(path: str) -> bool:
    """Return whether a local file or folder exists. One that may not be looked at is an error, and not missing.

    Raises:
        OSError: it is not known whether it exists.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_local(uri: str) -> bool:
    """Return whether a location is on this machine's file system."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def absolute(uri: str) -> str:
    """Return the location as an absolute one, for processes with another working folder."""
    fs, path = filesystem(uri)
    return path if isinstance(fs, LocalFileSystem) else uri


def in_memory(uri: str) -> bool:
    """Return whether a location is in the memory of this process, and gone when it ends."""
    return isinstance(filesystem(uri)[0], MemoryFileSystem)


def in_job_package(uri: str) -> bool:
    """Return whether a location is inside the copy of a working folder that Ray unpacks for a job and later deletes."""
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        return False
    parts = PurePath(os.path.realpath(path)).parts
    return any(
        folder in _RAY_PACKAGES and (before == "runtime_resources" or inside.startswith("_ray_pkg_"))
        for before, folder, inside in zip(parts, parts[1:], (*parts[2:], ""), strict=False)
    )


def why_missing(uri: str) -> str:
    """Return a hint for messages that nothing is at `uri`, such as where relative paths lead in a job; else empty."""
    if _protocol(uri) == "hf":
        return "; a private or gated repository needs a token, as in HF_TOKEN, and its terms to be accepted"
    if not in_job_package(uri):
        return ""
    return (
        "; in a submitted job relative paths lead into the package that Ray made of --working-dir: "
        "give an object store URI, or an absolute path on a disk that all nodes share"
    )
