"""Read and write single files at any fsspec location, atomically."""

import inspect
import json
import os
import posixpath
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.documents import parse_json
from pipeline.errors import DatasetError
from pipeline.log import logger
from pipeline.storage.local_files import create_locally, write_locally
from pipeline.storage.locations import filesystem, is_there, location_errors, reason, why_missing
from pipeline.storage.placing import grows_in_place, is_on, place_whole
from pipeline.transient import driver_errors, is_forbidden

# Number of bytes that are read ahead of a remote file: s3fs would fetch 50 MiB with each column of a row group.
_READ_AHEAD = 2**18


def write_bytes(uri: str, content: bytes, *, temporary_in: str | None = None) -> None:
    """Write a file atomically: in a file system it is moved into place, an object store gets one request.

    A process killed at any moment leaves the old file or the new one. It may also leave a temporary file named
    `.NAME.HEX.tmp`, which readers of datasets ignore. HDFS and SMB cannot replace a file in one step: there, no file
    has the name for a moment, and a process killed then leaves none.

    Args:
        uri: location of the file.
        content: the whole content of the file.
        temporary_in: folder for the temporary file, on the same disk; by default the file's own folder. An object store
            needs none.

    Raises:
        OSError: the disk is full, the store refuses, or the network fails; a retry may succeed.
    """
    fs, path = filesystem(uri)
    folder = posixpath.dirname(path) if temporary_in is None else filesystem(temporary_in)[1]
    if isinstance(fs, LocalFileSystem):
        return write_locally(Path(path), content, Path(folder))
    try:
        place_whole(fs, path, lambda place: fs.pipe_file(place, content), folder)
    except driver_errors() as error:
        raise OSError(reason(error)) from error


def create_bytes(uri: str, content: bytes) -> bool:
    """Write a file unless it exists; if several processes try at once, one of them succeeds.

    That holds on local disks, on S3 and stores that support its `If-None-Match`, and on Google Cloud Storage. On any
    other store the check and the write are two requests, so a caller that must be sure reads back what is there.

    Returns:
        Whether this call wrote the file.

    Raises:
        OSError: as `write_bytes`.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return create_locally(Path(path), content)
    fs.invalidate_cache()
    try:
        if is_on(fs, path):
            return False
        if grows_in_place(fs):
            folder = posixpath.dirname(path)
            return place_whole(fs, path, lambda place: fs.pipe_file(place, content), folder, replace=False)
        condition = {"mode": "create"} if "mode" in inspect.signature(fs.pipe_file).parameters else {}
        try:
            fs.pipe_file(path, content, **condition)
        except NotImplementedError:  # the answer of an S3 server that does not support the condition
            fs.pipe_file(path, content)
    except FileExistsError:
        return False
    except driver_errors() as error:
        raise OSError(reason(error)) from error
    return True


def create_json(uri: str, value: Any) -> bool:
    """Write plain data as indented JSON unless the file exists; see `create_bytes`."""
    return create_bytes(uri, _to_json(value))


def write_json(uri: str, value: Any, *, temporary_in: str | None = None) -> None:
    """Write plain data as indented JSON, atomically; see `write_bytes`."""
    write_bytes(uri, _to_json(value), temporary_in=temporary_in)


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def read_bytes(uri: str) -> bytes:
    """Return the content of a file.

    Raises:
        DatasetError: there is no such file, or it cannot be read.
    """
    fs, path = filesystem(uri)
    try:
        return fs.cat_file(path)  # type: ignore[return-value]
    except location_errors() as error:
        hint = why_missing(uri) if isinstance(error, FileNotFoundError) else ""
        raise DatasetError(f"cannot read {uri!r}: {reason(error)}{hint}") from error


def read_json(uri: str) -> Any:
    """Return the plain data in a JSON file.

    Raises:
        DatasetError: there is no such file, or it is not JSON.
    """
    try:
        return parse_json(read_bytes(uri))
    except ValueError as error:
        raise DatasetError(f"{uri!r} is not JSON: {error}") from error


def read_errors() -> tuple[type[BaseException], ...]:
    """Return the errors of storage that reading from `open_file` may raise. A parser adds its own about the content."""
    return (OSError, *driver_errors())


def exists(uri: str) -> bool:
    """Return whether a file or folder exists.

    Raises:
        DatasetError: the storage cannot be read.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        return is_there(path) if isinstance(fs, LocalFileSystem) else is_on(fs, path)
    except location_errors() as error:
        raise DatasetError(f"cannot read {uri!r}: {reason(error)}") from error


def open_file(uri: str) -> IO[bytes]:
    """Open a file that is to be read in pieces, such as the footer of a Parquet file.

    Raises:
        OSError: it cannot be opened.
    """
    fs, path = filesystem(uri)
    try:
        file: Any = fs.open(path, "rb", block_size=_READ_AHEAD)
    except driver_errors() as error:
        raise OSError(reason(error)) from error
    # A file in an archive (`zip://x.parquet::s3://...`) is closed when its file system is collected, so the file keeps
    # its file system alive.
    weakref.finalize(file, id, fs)
    return file


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """Yield a local path of a file: its own, or that of a temporary copy, which is deleted at the end.

    Raises:
        DatasetError: there is no such file, or it cannot be read.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        if not os.path.isfile(path):
            raise DatasetError(f"cannot read {uri!r}: there is no such file{why_missing(uri)}")
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="copy-") as folder:
        target = Path(folder, posixpath.basename(path))
        _download(uri, path, target)
        yield target


def bring_beside(uri: str, name: str, copy: Path) -> None:
    """Copy a second file from beside a file to beside its local copy, unless it is there.

    Args:
        uri: location of the first file.
        name: path of the second file, relative to the folder of the first one.
        copy: local path of the first file, from `local_file`.

    Raises:
        DatasetError: there is no such file, or it cannot be read.
    """
    fs, path = filesystem(uri)
    target = copy.parent / name
    if target.is_file():
        return
    if isinstance(fs, LocalFileSystem):
        raise DatasetError(f"cannot read {name!r}, which belongs to {uri!r}: there is no such file")
    target.parent.mkdir(parents=True, exist_ok=True)
    _download(uri, posixpath.join(posixpath.dirname(path), name), target)


def _download(uri: str, path: str, target: Path) -> None:
    """Copy a file from the file system of a URI to this machine, in pieces."""
    fs, own = filesystem(uri)
    try:
        fs.get_file(path, str(target))
    except location_errors() as error:
        needed = "" if path == own else f"{posixpath.basename(path)!r}, which belongs to "
        raise DatasetError(f"cannot read {needed}{uri!r}: {reason(error)}") from error


def remove(uri: str) -> None:
    """Delete a file if it exists. If deleting is forbidden, it is left and a line on standard error says so.

    Raises:
        OSError: it could not be deleted for another reason.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # another process may have made it since the last listing
    try:
        if is_on(fs, path):
            fs.rm_file(path)
    except FileNotFoundError:
        return  # another process deleted it first
    except driver_errors() as error:
        raise OSError(reason(error)) from error
    except OSError as error:
        if not is_forbidden(error):
            raise
        warn_left(posixpath.dirname(uri))


@cache
def warn_left(folder: str) -> None:
    """Warn, once per folder, that files in it could not be deleted."""
    logger.warning(f"files are left in {folder!r}, they could not be deleted")


@contextmanager
def writing_to(uri: str) -> Iterator[None]:
    """Turn errors of writing inside the context, such as a full disk or a store that refuses, into a DatasetError.

    Raises:
        DatasetError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise DatasetError(f"cannot write to {uri!r}: {reason(error)}") from error
