"""Files at any fsspec location: a file exists wholly or not at all."""

import json
import os
import posixpath
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DatasetError

# What the storage backends raise for a location that cannot be read or written. FileNotFoundError and
# PermissionError are OSErrors; an unknown scheme is a ValueError, a missing driver an ImportError.
_LOCATION_ERRORS = (OSError, ValueError, ImportError)


def join(uri: str, *names: str) -> str:
    """`uri` with path segments appended."""
    return posixpath.join(uri, *names)


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI (a plain path is local) and the path on it.

    Raises:
        DatasetError: the scheme is unknown or its driver is not installed.
    """
    try:
        return fsspec.core.url_to_fs(uri)
    except _LOCATION_ERRORS as error:
        raise DatasetError(f"cannot open {uri!r}: {error}") from error


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file at once: moved into place on a local disk, one request on an object store.

    A process killed at any moment leaves the old file or the new one. What a kill leaves of a local temporary file
    is named `.NAME.HEX.tmp`, and readers of datasets never look at it.

    Raises:
        OSError: the disk is full, the store refuses, or the network fails; worth another try.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(uri: str, value: Any) -> None:
    """Write plain data as indented JSON, at once."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        DatasetError: there is no such file, or it cannot be read.
    """
    fs, path = filesystem(uri)
    try:
        return fs.cat_file(path)
    except _LOCATION_ERRORS as error:
        raise DatasetError(f"cannot read {uri!r}: {_reason(error)}") from error


def read_json(uri: str) -> Any:
    """The plain data of a JSON file.

    Raises:
        DatasetError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise DatasetError(f"{uri!r} is not JSON: {error}") from error


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Names (not paths) of the files right under a folder, sorted; none where there is no such folder."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    names = (posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "file")
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))


def remove(uri: str) -> None:
    """Delete a file if it is there."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm_file(path)


def upload_folder(local: str | Path, uri: str) -> None:
    """Copy the files of a local folder, and of those below it, to a location; each file appears at once."""
    for file in sorted(Path(local).rglob("*")):
        if file.is_file():
            write_bytes(join(uri, *file.relative_to(local).parts), file.read_bytes())


def check_writable(uri: str) -> None:
    """Find out before the work, not after it, that nothing can be written to a folder.

    Raises:
        DatasetError: writing a small file there failed.
    """
    probe = join(uri, f".probe-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"")
        remove(probe)
    except _LOCATION_ERRORS as error:
        raise DatasetError(f"cannot write to {uri!r}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
