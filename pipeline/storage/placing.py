"""Put whole files in their places on storage that is not a disk of this machine.

An object store shows an object when all of it has arrived. A file system shows a file from its first byte on: there it
is written under another name, and moved. HDFS and SMB move nothing onto a file that is there: while one is replaced,
there is a moment in which no file has the name, and if the process is killed then, both are lost.
"""

import contextlib
import errno
import inspect
import posixpath
from collections.abc import Callable
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from pipeline.storage.local_files import temporary_name
from pipeline.transient import driver_errors, is_missing

# Protocols of file systems, which can move a file.
_FILE_SYSTEMS = {"hdfs", "arrow_hdfs", "webhdfs", "webHDFS", "sftp", "ssh", "ftp", "smb", "dbfs", "webdav"}


def grows_in_place(fs: Any) -> bool:
    """Return whether others see a file on this storage while it is being written."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    # The file system that a cache or a chroot works on.
    inner = getattr(fs, "fs", None)
    return not protocols.isdisjoint(_FILE_SYSTEMS) or (isinstance(inner, AbstractFileSystem) and grows_in_place(inner))


def is_on(fs: Any, path: str) -> bool:
    """Return whether a file or folder exists.

    Raises:
        OSError, or an error of the driver: it is not known. Most implementations of fsspec's `exists` answer "no" then.
    """
    if isinstance(fs, AsyncFileSystem):
        # For HTTP, `exists` also answers "no" if the server refuses or is not there, unless it is told to be strict.
        strict = {"strict": True} if "strict" in inspect.signature(fs._exists).parameters else {}
        return bool(fs.exists(path, **strict))
    try:
        fs.info(path)
    except OSError as error:
        if is_missing(error):
            return False
        raise
    return True


def place_whole(fs: Any, path: str, write: Callable[[str], object], temporary_in: str, *, replace: bool = True) -> bool:
    """Make a file appear at a path when it is complete.

    Args:
        fs: file system of a storage other than this machine's disks.
        path: path of the file on it.
        write: function that writes the file at the path that it is given.
        temporary_in: folder for the temporary file of a file system.
        replace: whether to replace a file that is there already.

    Returns:
        Whether the file was put there; False where another one is, and is not to be replaced.

    Raises:
        OSError, or an error of the driver: it could not be written. The file that was there is there again or, where
            storage failed that too, lies in `temporary_in` under a hidden name.
    """
    if not grows_in_place(fs):
        write(path)
        return True
    temporary = posixpath.join(temporary_in, temporary_name(posixpath.basename(path)))
    for folder in (temporary_in, posixpath.dirname(path)):
        _make_folder(fs, folder)
    try:
        write(temporary)
        return _move(fs, temporary, path, replace=replace)
    finally:
        with contextlib.suppress(OSError, *driver_errors()):
            if is_on(fs, temporary):
                fs.rm_file(temporary)


def _make_folder(fs: Any, folder: str) -> None:
    try:
        fs.makedirs(folder, exist_ok=True)
    except OSError:
        # Another process may have made it at this moment.
        if not is_on(fs, folder):
            raise


def _move(fs: Any, temporary: str, path: str, *, replace: bool) -> bool:
    """Move a file; where the storage moves nothing onto another file, that one is set aside for this moment."""
    try:
        fs.mv(temporary, path)
    except (OSError, *driver_errors()) as error:
        # If the temporary file is gone, the file at the path may be the old one, or the one that was moved there.
        if not (_says_it_exists(error) and is_on(fs, temporary) and is_on(fs, path)):
            raise
    fs.invalidate_cache()
    # HDFS and SMB move nothing onto a file that is there, and WebHDFS does not say so.
    if not is_on(fs, temporary):
        return True
    if not replace:
        return False
    _replace(fs, temporary, path)
    return True


def _says_it_exists(error: BaseException) -> bool:
    """Return whether an error of moving says that the target is there; HDFS says "input/output error" for that."""
    return getattr(error, "errno", None) in (errno.EEXIST, errno.EIO) or "exists" in str(error).lower()


def _replace(fs: Any, temporary: str, path: str) -> None:
    """Put a file in the place of another one; if that fails, the other one is put back."""
    aside = posixpath.join(posixpath.dirname(temporary), temporary_name(posixpath.basename(path)))
    try:
        fs.mv(path, aside)
    except (OSError, *driver_errors()):
        # Another process may have set it aside or deleted it.
        if is_on(fs, path):
            raise
    try:
        fs.mv(temporary, path)
        fs.invalidate_cache()
        if is_on(fs, temporary):
            raise OSError(f"{temporary!r} could not be moved to {path!r}")
    except (OSError, *driver_errors()):
        with contextlib.suppress(OSError, *driver_errors()):
            fs.mv(aside, path)
        raise
    finally:
        with contextlib.suppress(OSError, *driver_errors()):
            fs.invalidate_cache()
            # A file that could not be put back is the only copy left, and stays.
            if is_on(fs, aside) and is_on(fs, path):
                fs.rm_file(aside)
