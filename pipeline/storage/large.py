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

from pipeline.storage.local_files import temporary_path
from pipeline.storage.locations import filesystem, reason
from pipeline.storage.placing import place_whole
from pipeline.storage.retrying import with_retries
from pipeline.transient import driver_errors

# Bytes of an upload's part: drivers send several at once, and S3 takes 10,000 for a file.
_PIECE_BYTES = 16 * 2**20


@contextmanager
def new_file(uri: str, *, temporary_in: str) -> Iterator[Path]:
    """Yield a local path to write a file at; if the context ends without an error, the complete file appears at `uri`.

    A local file is moved into place. For other storage it is written to the machine's folder of temporary files, and
    uploaded. A process killed at any moment leaves no file at `uri`, or all of it; it may leave a temporary file.

    Args:
        uri: location of the file.
        temporary_in: folder for the temporary file, on the same disk; an object store needs none.

    Raises:
        OSError: the disk is full, or the store kept refusing.
    """
    fs, path = filesystem(uri)
    folder = filesystem(temporary_in)[1]
    if not isinstance(fs, LocalFileSystem):
        with tempfile.TemporaryDirectory(prefix="upload-") as own:
            local = Path(own, posixpath.basename(path))
            yield local
            with_retries(lambda: _upload(fs, local, path, folder))
        return
    target = Path(path)
    temporary = temporary_path(target, Path(folder))
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _upload(fs: Any, local: Path, path: str, temporary_in: str) -> None:
    """Copy a local file to other storage; it appears there in one moment, when all of its pieces have arrived."""
    takes_size = "chunksize" in inspect.signature(fs.put_file).parameters
    options = {"chunksize": _PIECE_BYTES} if takes_size else {}
    try:
        place_whole(fs, path, lambda place: fs.put_file(str(local), place, **options), temporary_in)
    except driver_errors() as error:
        raise OSError(reason(error)) from error
