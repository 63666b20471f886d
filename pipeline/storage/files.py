"""Read and write single files at any fsspec location, atomically."""

import errno
import inspect
import json
import os
import posixpath
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DatasetError
from pipeline.log import logger
from pipeline.storage.locations import driver_errors, filesystem, location_errors, why_missing

# A local file system without hard links (FAT, some FUSE and network ones).
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EACCES)


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
        except driver_errors() as error:
            raise OSError(reason(error)) from error
        return
    target = Path(path)
    folder = target.parent if temporary_in is None else Path(filesystem(temporary_in)[1])
    with _temporary(target, folder, content) as temporary:
        temporary.replace(target)


@contextmanager
def _temporary(target: Path, folder: Path, content: bytes) -> Iterator[Path]:
    """Write a local file beside its place, safely on the disk; what is not moved away is deleted at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def create_bytes(uri: str, content: bytes) -> bool:
    """Write a file unless there is one already; of several processes that try at once, one succeeds.

    That holds on local disks, on S3 and stores that know its `If-None-Match`, and on Google Cloud Storage. Any other
    store is asked first and written to then, so a caller who must know reads back what is there.

    Returns:
        Whether this call wrote the file.

    Raises:
        OSError: as `write_bytes`.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return _create_locally(Path(path), content)
    fs.invalidate_cache()
    try:
        if fs.exists(path):
            return False
        if "mode" in inspect.signature(fs.pipe_file).parameters:
            fs.pipe_file(path, content, mode="create")
        else:
            fs.pipe_file(path, content)
    except FileExistsError:
        return False
    except NotImplementedError:  # an S3 server that does not know the condition says so
        fs.pipe_file(path, content)
    except driver_errors() as error:
        raise OSError(reason(error)) from error
    return True


def _create_locally(target: Path, content: bytes) -> bool:
    with _temporary(target, target.parent, content) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            # NFS may do it and, when the answer was lost, say that it was done before.
            return temporary.stat().st_nlink > 1
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return _create_exclusively(target, content)
    return True


def _create_exclusively(target: Path, content: bytes) -> bool:
    """Without hard links one of several wins too, but another process may see the file before it is whole."""
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def create_json(uri: str, value: Any) -> bool:
    """Write plain data as indented JSON unless there is a file already; see `create_bytes`."""
    return create_bytes(uri, _to_json(value))


def write_json(uri: str, value: Any, *, temporary_in: str | None = None) -> None:
    """Write plain data as indented JSON, at once; see `write_bytes`."""
    write_bytes(uri, _to_json(value), temporary_in=temporary_in)


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def read_bytes(uri: str) -> bytes:
    """The content of a file.

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
    """The plain data of a JSON file.

    Raises:
        DatasetError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise DatasetError(f"{uri!r} is not JSON: {error}") from error


def read_errors() -> tuple[type[BaseException], ...]:
    """Return what reading a file that `open_file` opened may raise, beside what its reader makes of the content."""
    return (OSError, *driver_errors())


def exists(uri: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        DatasetError: that cannot be found out.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        return bool(fs.exists(path))
    except location_errors() as error:
        raise DatasetError(f"cannot read {uri!r}: {reason(error)}") from error


def open_file(uri: str) -> IO[bytes]:
    """A file to be read in pieces, as the footer of a Parquet file is.

    Raises:
        OSError: it cannot be opened.
    """
    fs, path = filesystem(uri)
    try:
        file: Any = fs.open(path, "rb")
    except driver_errors() as error:
        raise OSError(reason(error)) from error
    # A file in an archive (`zip://x.parquet::s3://...`) is closed when its file system is gone: that lives as long.
    weakref.finalize(file, id, fs)
    return file


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """Give the path of a file on this machine: its own, or that of a copy in a folder that is deleted at the end.

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
    """Make sure that a file which lies beside another lies beside that one's local copy too.

    Args:
        uri: the one file.
        name: of the other, relative to the folder of the first.
        copy: as `local_file` gave it for `uri`.

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
    """Copy a file on the file system of a URI to this machine, in pieces."""
    fs, own = filesystem(uri)
    try:
        fs.get_file(path, str(target))
    except location_errors() as error:
        needed = "" if path == own else f"{posixpath.basename(path)!r}, which belongs to "
        raise DatasetError(f"cannot read {needed}{uri!r}: {reason(error)}") from error


def remove(uri: str) -> None:
    """Delete a file if it is there. Where nothing may be deleted it is left, and a line on standard error says so.

    Raises:
        OSError: it could not be deleted for another reason.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # another process may have made it since this one looked
    try:
        if fs.exists(path):
            fs.rm_file(path)
    except FileNotFoundError:
        return  # somebody else was faster
    except driver_errors() as error:
        raise OSError(reason(error)) from error
    except OSError as error:
        if not _is_forbidden(error):
            raise
        tell_left(posixpath.dirname(uri))


def _is_forbidden(error: OSError) -> bool:
    # gcsfs has no error of its own for it.
    return isinstance(error, PermissionError) or str(error).startswith("Forbidden")


@cache
def tell_left(folder: str) -> None:
    """Say once that something stays which should have been deleted."""
    logger.warning(f"files are left in {folder!r}, they could not be deleted")


@contextmanager
def writing_to(uri: str) -> Iterator[None]:
    """Within it, a disk that is full or a store that refuses is told of in a line.

    Raises:
        DatasetError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise DatasetError(f"cannot write to {uri!r}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return type and text of a library's error."""
    return f"{type(error).__name__}: {error}"
