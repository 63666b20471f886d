"""List, copy and delete folders at any fsspec location."""

import contextlib
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DatasetError
from pipeline.storage.files import read_bytes, remove, warn_left, write_bytes
from pipeline.storage.hidden import is_hidden
from pipeline.storage.locations import filesystem, join, location_errors, reason
from pipeline.storage.placing import grows_in_place, is_on
from pipeline.transient import driver_errors

# Suffix of the empty file that Hadoop writes beside a folder `NAME` to mark that it exists.
_HADOOP_MARKER = "_$folder$"
# Names that `temporary_path` makes.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)


def is_file(uri: str) -> bool:
    """Return whether a URI is a file that exists; for a web address, whether it exists.

    This also works on a store that lets a user read the file but not list its folder.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        if not fs.isfile(path):
            return False
        # The size of a web page may be unknown.
        if isinstance(fs, LocalFileSystem) or fs.size(path) != 0:
            return True
    except location_errors():
        return False
    # An empty object may be the marker of a folder of that name.
    marked = {path.rstrip("/")} if _has_entries(fs, path) else set()
    return not _is_marker({"name": path, "size": 0}, marked)


def _has_entries(fs: Any, path: str) -> bool:
    """Return whether anything lies below a path that is a file too; False if listing it is forbidden."""
    try:
        return any(entry["name"].rstrip("/") != path.rstrip("/") for entry in fs.ls(path, detail=True))
    except location_errors():
        return False


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Return the sorted names (not paths) of the files directly in a folder; empty if there is no such folder.

    Hidden files and an object store's markers of folders are left out.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    return [name for name in list_sizes(uri) if name.endswith(suffix)]


def list_sizes(uri: str) -> dict[str, int]:
    """Return name → size in bytes of the files that `list_files` names, in its order.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    fs, path, entries = _list(uri)
    folders = {entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"}
    # The listing of a file is the file itself; that of a folder may hold the folder's marker.
    files = [entry for entry in entries if _is_file(fs, entry) and not _is_marker(entry, folders)]
    sizes = {posixpath.basename(entry["name"]): int(entry.get("size") or 0) for entry in files if entry["name"] != path}
    return {name: sizes[name] for name in sorted(sizes) if not is_hidden(name)}


def list_folders(uri: str) -> list[str]:
    """Return the sorted names (not paths) of the folders directly in a folder; empty if there is no such folder.

    Hidden ones are left out.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    _, path, entries = _list(uri)
    paths = {entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"} - {path.rstrip("/")}
    return sorted(name for name in map(posixpath.basename, paths) if not is_hidden(name))


def _list(uri: str) -> tuple[Any, str, list[dict[str, Any]]]:
    """Return the filesystem and path of a folder, and fsspec's fresh entries; none if there is no such folder."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        return fs, path, fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return fs, path, []
    except location_errors() as error:
        raise DatasetError(f"cannot list {uri!r}: {reason(error)}") from error


def find_files(uri: str) -> list[tuple[str, int]]:
    """Return name below the folder and size in bytes of every file in it and in its subfolders, sorted.

    Hidden files and an object store's markers of folders are left out. If the location is a file, the only entry has an
    empty name.

    Raises:
        DatasetError: it cannot be listed.
    """
    root, found = _find(uri)
    folders = {folder for name in found for folder in _parents(name)}
    files = {name: int(entry.get("size") or 0) for name, entry in found.items() if not _is_marker(entry, folders)}
    below = {name.removeprefix(root).lstrip("/"): size for name, size in files.items()}
    return sorted((name, size) for name, size in below.items() if not any(map(is_hidden, name.split("/"))))


def find_tree(uri: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Return files with their sizes in bytes, and folders, by their names below a location, sorted.

    Hidden ones are included. An object store's marker of a folder counts as that folder.

    Raises:
        DatasetError: it cannot be listed.
    """
    root, found = _find(uri, withdirs=True)
    parents = {folder for name in found for folder in _parents(name)}
    folders = {name for name, entry in found.items() if entry["type"] == "directory" or _is_marker(entry, parents)}
    below = {name: name.removeprefix(root).strip("/") for name in found}
    files = [(below[name], int(entry.get("size") or 0)) for name, entry in found.items() if name not in folders]
    return sorted(files), sorted({below[name].removesuffix(_HADOOP_MARKER) for name in folders} - {""})


def _find(uri: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """Return the path of a location without trailing slash, and fsspec's fresh entry for each path below it."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        return path.rstrip("/"), fs.find(path, detail=True, **options)  # type: ignore[return-value]
    except location_errors() as error:
        raise DatasetError(f"cannot list {uri!r}: {reason(error)}") from error


def _is_file(fs: Any, entry: dict[str, Any]) -> bool:
    # fsspec lists a link to a file as neither file nor folder.
    return entry["type"] == "file" or (bool(entry.get("islink")) and fs.isfile(entry["name"]))


def _is_marker(entry: dict[str, Any], folders: set[str]) -> bool:
    """Return whether an entry marks a folder: `NAME/`, an empty `NAME` beside `NAME/...`, or Hadoop's `NAME_$folder$`.

    Consoles and other tools write such empty objects to stores that have no folders.
    """
    name = entry["name"]
    return not entry.get("size") and (name.endswith(("/", _HADOOP_MARKER)) or name in folders)


def _parents(name: str) -> Iterator[str]:
    while "/" in name.strip("/"):
        name = name.rstrip("/").rpartition("/")[0]
        yield name


def remove_folder(uri: str) -> None:
    """Delete a folder with everything below it, if it exists. If deleting is forbidden, it is left, as in `remove`.

    Raises:
        OSError: it could not be deleted for another reason.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # another process may have made it since the last listing
    if isinstance(fs, LocalFileSystem):
        # Files that another process is writing there at this moment are left.
        shutil.rmtree(path, ignore_errors=True)
        if os.path.exists(path):
            warn_left(uri)
        return
    try:
        # One by one: fsspec's recursive delete takes `*` and `[1]` in a path as patterns, and deletes other folders.
        names = [name for name in fs.find(path) if not name.endswith("/")] if is_on(fs, path) else []
    except FileNotFoundError:
        return  # another process deleted it first
    except driver_errors() as error:
        raise OSError(reason(error)) from error
    for name in names:
        remove(join(uri, name.removeprefix(path).lstrip("/")))


def remove_temporaries(uri: str) -> None:
    """Delete the temporary files that killed writes left in a folder, and a local folder if nothing else is in it.

    Raises:
        OSError, DatasetError: they could not be listed or deleted.
    """
    fs, path = filesystem(uri)
    is_local = isinstance(fs, LocalFileSystem)
    if not is_local and not grows_in_place(fs):
        return
    for entry in _list(uri)[2]:
        name = posixpath.basename(entry["name"])
        if _TEMPORARY.fullmatch(name):
            remove(join(uri, name))
    # The driver of HDFS would delete a folder with all that is in it.
    if is_local:
        with contextlib.suppress(OSError):
            os.rmdir(path)


def upload_folder(local: str | Path, uri: str) -> None:
    """Copy the files of a local folder and its subfolders to a location; each file appears atomically."""
    for file in sorted(Path(local).rglob("*")):
        if file.is_file():
            write_bytes(join(uri, *file.relative_to(local).parts), file.read_bytes())


def download_folder(uri: str, local: str | Path) -> None:
    """Copy the files of a location and its subfolders to a local folder.

    Raises:
        DatasetError: they cannot be read.
    """
    for name, _ in find_files(uri):
        target = Path(local, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_bytes(join(uri, name)))


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield a folder for temporary files on this machine, which is deleted at the end.

    Raises:
        DatasetError: it could not be made, or writing to it failed. Writes to other places within the context belong in
            `writing_to`, so that their errors name those places.
    """
    folder = None
    try:
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            yield Path(folder)
    except OSError as error:
        where = "a temporary folder" if folder is None else f"the temporary folder {folder!r}"
        raise DatasetError(f"cannot write to {where}: {reason(error)}; TMPDIR can name another disk") from error
