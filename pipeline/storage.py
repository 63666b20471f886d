"""Files at any fsspec location: a file exists wholly or not at all."""

import json
import os
import posixpath
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import DatasetError

# What the storage backends raise for a location that cannot be read or written. FileNotFoundError and
# PermissionError are OSErrors; an unknown scheme is a ValueError, a missing driver an ImportError.
_LOCATION_ERRORS = (OSError, ValueError, ImportError)
# What the drivers of object stores let through without turning it into an OSError: no credentials, no endpoint.
_DRIVER_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)


def _driver_errors() -> tuple[type[BaseException], ...]:
    """Of the drivers in use: an error cannot come from a module that nobody has imported."""
    return tuple(getattr(sys.modules[module], name) for module, name in _DRIVER_ERRORS if module in sys.modules)


def _location_errors() -> tuple[type[BaseException], ...]:
    return (*_LOCATION_ERRORS, *_driver_errors())


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
    except _location_errors() as error:
        raise DatasetError(f"cannot open {uri!r}: {error}") from error


def absolute(uri: str) -> str:
    """The same location for a process with another working folder."""
    fs, path = filesystem(uri)
    return path if isinstance(fs, LocalFileSystem) else uri


def in_memory(uri: str) -> bool:
    """Whether a location is this process's alone, and gone with it."""
    return isinstance(filesystem(uri)[0], MemoryFileSystem)


def write_bytes(uri: str, content: bytes, *, temporary_in: str | None = None) -> None:
    """Write a file at once: moved into place on a local disk, one request on an object store.

    A process killed at any moment leaves the old file or the new one. What a kill leaves of a local temporary file
    is named `.NAME.HEX.tmp`, and readers of datasets never look at it.

    Args:
        uri: the file.
        content: all of it.
        temporary_in: folder on the same disk for the temporary file of a local write; by default the file's own.

    Raises:
        OSError: the disk is full, the store refuses, or the network fails; worth another try.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        try:
            fs.pipe_file(path, content)
        except _driver_errors() as error:
            raise OSError(_reason(error)) from error
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent if temporary_in is None else Path(filesystem(temporary_in)[1])
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(uri: str, value: Any, *, temporary_in: str | None = None) -> None:
    """Write plain data as indented JSON, at once; see `write_bytes`."""
    content = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_bytes(uri, content.encode(), temporary_in=temporary_in)


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        DatasetError: there is no such file, or it cannot be read.
    """
    fs, path = filesystem(uri)
    try:
        return fs.cat_file(path)  # type: ignore[return-value]
    except _location_errors() as error:
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
    """Whether a file or folder is there.

    Raises:
        DatasetError: that cannot be found out.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        return bool(fs.exists(path))
    except _location_errors() as error:
        raise DatasetError(f"cannot read {uri!r}: {_reason(error)}") from error


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Names (not paths) of the files right under a folder, sorted; none where there is no such folder.

    Raises:
        DatasetError: it cannot be listed.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except _location_errors() as error:
        raise DatasetError(f"cannot list {uri!r}: {_reason(error)}") from error
    names = (posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "file")
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))


def find_files(uri: str) -> list[tuple[str, int]]:
    """Name below the folder and size in bytes of every file in it and in its subfolders, sorted, without hidden ones.

    A file instead of a folder gives one entry whose name is empty.

    Raises:
        DatasetError: it cannot be listed.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    root = path.rstrip("/")
    try:
        found: Any = fs.find(path, detail=True)
    except _location_errors() as error:
        raise DatasetError(f"cannot list {uri!r}: {_reason(error)}") from error
    names = {name.removeprefix(root).lstrip("/"): int(entry["size"] or 0) for name, entry in found.items()}
    return sorted((name, size) for name, size in names.items() if not any(map(_is_hidden, name.split("/"))))


def _is_hidden(segment: str) -> bool:
    return segment.startswith(".")


def open_file(uri: str) -> IO[bytes]:
    """A file to be read in pieces, as the footer of a Parquet file is.

    Raises:
        OSError: it cannot be opened.
    """
    fs, path = filesystem(uri)
    try:
        return fs.open(path, "rb")  # type: ignore[return-value]
    except _driver_errors() as error:
        raise OSError(_reason(error)) from error


def remove(uri: str) -> None:
    """Delete a file if it is there.

    Raises:
        OSError: it could not be deleted.
    """
    fs, path = filesystem(uri)
    try:
        if fs.exists(path):
            fs.rm_file(path)
    except FileNotFoundError:
        return  # somebody else was faster
    except _driver_errors() as error:
        raise OSError(_reason(error)) from error


def remove_folder(uri: str) -> None:
    """Delete a folder and all below it, if it is there.

    Raises:
        OSError: it could not be deleted.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # another process may have made it since this one looked
    try:
        if fs.exists(path):
            fs.rm(path, recursive=True)
    except FileNotFoundError:
        return  # somebody else was faster
    except _driver_errors() as error:
        raise OSError(_reason(error)) from error


def upload_folder(local: str | Path, uri: str) -> None:
    """Copy the files of a local folder, and of those below it, to a location; each file appears at once."""
    for file in sorted(Path(local).rglob("*")):
        if file.is_file():
            write_bytes(join(uri, *file.relative_to(local).parts), file.read_bytes())


def download_folder(uri: str, local: str | Path) -> None:
    """Copy the files of a location, and of those below it, to a local folder.

    Raises:
        DatasetError: they cannot be read.
    """
    for name, _ in find_files(uri):
        target = Path(local, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_bytes(join(uri, name)))


@contextmanager
def writing_to(uri: str) -> Iterator[None]:
    """Within it, a disk that is full or a store that refuses is told of in a line.

    Raises:
        DatasetError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise DatasetError(f"cannot write to {uri!r}: {_reason(error)}") from error


def check_writable(uri: str) -> None:
    """Find out before the work, not after it, that nothing can be written to a folder. Leaves nothing there.

    Raises:
        DatasetError: writing a small file there failed.
    """
    probe = join(uri, f".probe-{uuid.uuid4().hex[:8]}")
    fs, path = filesystem(uri)
    folders = (Path(path), *Path(path).parents) if isinstance(fs, LocalFileSystem) else ()
    made = [folder for folder in folders if not folder.exists()]
    try:
        write_bytes(probe, b"")
        remove(probe)
        for folder in made:
            folder.rmdir()
    except _location_errors() as error:
        raise DatasetError(f"cannot write to {uri!r}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
