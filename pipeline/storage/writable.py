"""Check that a folder can be written to, and leave no trace of it."""

import contextlib
import hashlib
import os
import socket
import uuid
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DatasetError
from pipeline.storage.files import warn_left, write_bytes
from pipeline.storage.locations import filesystem, join, location_errors, reason
from pipeline.storage.placing import grows_in_place
from pipeline.transient import driver_errors, is_refusal

_PROBE = ".probe"


def check_writable(uri: str) -> None:
    """Check before the work starts that a folder can be written to, by writing and deleting a small file.

    Any number of processes may check one folder at the same time. If deleting is forbidden, a hidden empty file stays,
    and a line on standard error says that files are left. It is the same for every check of one machine, but where
    replacing a file is forbidden too.

    Raises:
        DatasetError: the small file could not be written.
    """
    file = _file_above(uri)
    if file is not None:
        raise DatasetError(f"cannot write to {uri!r}: {str(file)!r} is a file, and a folder is needed")
    made = new_folders(uri)
    try:
        _delete_probe(uri, _write_probe(uri))
        remove_empty(made)
    except location_errors() as error:
        raise DatasetError(f"cannot write to {uri!r}: {reason(error)}") from error


def _write_probe(uri: str) -> str:
    """Write a small file to a folder, and return its location.

    One name for all would be replaced by hundreds of workers in the same second, and Google's store takes a write of a
    name per second; a name for each check would fill a bucket that lets nothing be deleted. A file system that moves
    files may move none onto another, so there each check has its own, and deletes it.
    """
    probe = join(uri, _own_name() if grows_in_place(filesystem(uri)[0]) else _name_of_machine())
    try:
        write_bytes(probe, b"")
    except OSError as error:
        # A store may let files be made, and none be replaced: one of an earlier check may be there.
        if not is_refusal(error):
            raise
        probe = join(uri, _own_name())
        write_bytes(probe, b"")
    return probe


def _own_name() -> str:
    return f"{_PROBE}.{uuid.uuid4().hex[:8]}"


def _name_of_machine() -> str:
    return f"{_PROBE}.{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}"


def _delete_probe(uri: str, probe: str) -> None:
    """Delete the small file; where that cannot be done, the folder is writable all the same."""
    fs, path = filesystem(probe)
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return  # another process deleted it
    except (OSError, *driver_errors()):
        warn_left(uri)


def _file_above(uri: str) -> Path | None:
    """Return the local file that has the name of a folder, or of a folder above it; None if there is none."""
    return next((folder for folder in _and_above(uri) if os.path.exists(folder) and not os.path.isdir(folder)), None)


def new_folders(uri: str) -> list[Path]:
    """Return the local folders that writing to a folder would create, innermost first; empty on an object store."""
    return [folder for folder in _and_above(uri) if not os.path.exists(folder)]


def _and_above(uri: str) -> list[Path]:
    """Return a local folder and those above it, innermost first; none on an object store."""
    fs, path = filesystem(uri)
    return [Path(path), *Path(path).parents] if isinstance(fs, LocalFileSystem) else []


def remove_empty(folders: list[Path]) -> None:
    """Delete those of the given local folders, listed innermost first, that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
