"""Write files on a local disk: wholly there or not at all."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Errors of local file systems without hard links (FAT, some FUSE and network file systems).
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EACCES)


def write_locally(target: Path, content: bytes, folder: Path) -> None:
    """Write a file under another name in `folder`, on the same disk, and move it into place."""
    with _temporary(target, folder, content) as temporary:
        temporary.replace(target)


@contextmanager
def _temporary(target: Path, folder: Path, content: bytes) -> Iterator[Path]:
    """Write a temporary local file and flush it to the disk; at the end it is deleted unless it was moved."""
    temporary = temporary_path(target, folder)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(target: Path, folder: Path) -> Path:
    """Return where to write a file that will be moved to `target`, by a name that `remove_temporaries` recognizes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / temporary_name(target.name)


def temporary_name(name: str) -> str:
    """Return a new hidden name for a file that will be renamed to this name; readers ignore it."""
    return f".{name}.{uuid.uuid4().hex[:8]}.tmp"


def create_locally(target: Path, content: bytes) -> bool:
    """Write a file unless it exists, and return whether this call wrote it; of several calls at once, one does."""
    with _temporary(target, target.parent, content) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            # When an answer got lost, NFS may report that a link exists which this very call made.
            return temporary.stat().st_nlink > 1
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return _create_exclusively(target, content)
    return True


def _create_exclusively(target: Path, content: bytes) -> bool:
    """Create a file without hard links: here too only one process succeeds, but others may read an incomplete file."""
    try:
        with target.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True
