"""Write files that are too large to be held in memory, at any fsspec location, atomically."""

import inspect
import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.files import temporary_path
from pipeline.storage.locations import filesystem, reason
from pipeline.storage.retrying import with_retries
from pipeline.transient import driver_errors

# Bytes of an upload's part: drivers send several at once, and S3 takes 10,000 for a file.
_PIECE_BYTES = 16 * 2**20


@contextmanager
def new_file(uri: str, *, temporary_in: str) -> Iterator[Path]:
    """Yield a local path to write a file at; if the context ends without an error, the complete file appears at `uri`.

    A local file is moved into place. For an object store it is written to the machine's folder of temporary files, and
    uploaded. A process killed at any moment leaves no file at `uri`, or all of it; it may leave a local temporary file.

    Args:
        uri: the file.
        temporary_in: folder for the temporary file of a local write, on the same disk.

    Raises:
        OSError: the disk is full, or the store kept refusing.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            local = Path(folder, posixpath.basename(path))
            yield local
            with_retries(lambda: _upload(fs, local, path))
        return
    target, folder = Path(path), Path(filesystem(temporary_in)[1])
    temporary = temporary_path(target, folder)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _upload(fs: Any, local: Path, path: str) -> None:
    """Copy a local file to an object store; it appears there in one moment, when all of its pieces have arrived."""
    takes_size = "chunksize" in inspect.signature(fs.put_file).parameters
    try:
        fs.put_file(str(local), path, **({"chunksize": _PIECE_BYTES} if takes_size else {}))
    except driver_errors() as error:
        raise OSError(reason(error)) from error
