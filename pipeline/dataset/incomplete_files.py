"""Refuse files that an unfinished transfer left, before any of them is read as an image."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.file_kinds import is_lfs_pointer

# Git LFS keeps its pointers below this size; most images are above it, and are not looked into.
_POINTER_BYTES = 200


def check_not_empty(uri: str, sizes: Mapping[str, int], images: Iterable[str]) -> None:
    """Refuse empty image files, which an interrupted copy leaves.

    Raises:
        DatasetError: a file is empty.
    """
    empty = [name for name in images if not sizes[name]]
    if empty:
        raise DatasetError(f"{uri!r} has {len(empty)} empty image files, such as {empty[0]!r}: copy them again")


def check_pulled(uri: str, sizes: Mapping[str, int], names: Iterable[str]) -> None:
    """Refuse pointers of Git LFS, which `git clone` leaves in place of files that were not pulled.

    Args:
        uri: location of the folder.
        sizes: name of a file below the folder → its size in bytes. Only files as small as a pointer are opened.
        names: names of the files that are to be read.

    Raises:
        DatasetError: there are pointers, or a small file cannot be read.
    """
    names = list(names)
    small = [name for name in names if sizes[name] < _POINTER_BYTES]

    def is_pointer(name: str) -> bool:
        return is_lfs_pointer(storage.read_bytes(storage.join(uri, name)))

    with ThreadPoolExecutor(storage.READ_THREADS) as threads:
        pointers = [name for name, found in zip(small, threads.map(is_pointer, small), strict=True) if found]
    if pointers:
        raise DatasetError(
            f"{uri!r}: {len(pointers)} of {len(names)} files are Git LFS pointers, not the files themselves, such as "
            f"{pointers[0]!r}: run `git lfs pull` in the repository"
        )
