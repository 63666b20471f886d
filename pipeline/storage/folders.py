"""List, copy and delete folders at any fsspec location."""

import contextlib
import os
import posixpath
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DatasetError
from pipeline.storage.files import read_bytes, reason, remove, tell_left, write_bytes
from pipeline.storage.locations import driver_errors, filesystem, join, location_errors

# One name, not a new one for each try: where nothing may be deleted, one empty file stays, and readers skip it.
_PROBE = ".probe"
# Hadoop's note that there is a folder `NAME`, as an empty file beside it.
_HADOOP_MARKER = "_$folder$"


def is_file(uri: str) -> bool:
    """Return whether a single file is there; of a web address, whether anything is.

    Asked for a file alone, a store that lets a user read it but not list its folder still answers.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        if not fs.isfile(path):
            return False
        # Of a web page no size may be known.
        if isinstance(fs, LocalFileSystem) or fs.size(path) != 0:
            return True
    except location_errors():
        return False
    # An empty one may stand for the folder of its name.
    marked = {path.rstrip("/")} if _has_entries(fs, path) else set()
    return not _is_marker({"name": path, "size": 0}, marked)


def _has_entries(fs: Any, path: str) -> bool:
    """Whether anything lies below a path that is a file too; where nobody may look, nothing does."""
    try:
        return any(entry["name"].rstrip("/") != path.rstrip("/") for entry in fs.ls(path, detail=True))
    except location_errors():
        return False


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Return the names (not paths) of the files right under a folder, sorted; none where there is no such folder.

    Hidden files are left out, and so is what an object store keeps in place of a folder.

    Raises:
        DatasetError: it cannot be listed.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except location_errors() as error:
        raise DatasetError(f"cannot list {uri!r}: {reason(error)}") from error
    folders = {entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"}
    # A file has no entries but itself; a folder may hold its own marker.
    files = [entry for entry in entries if _is_file(fs, entry) and not _is_marker(entry, folders)]
    names = [posixpath.basename(entry["name"]) for entry in files if entry["name"] != path]
    return sorted(name for name in names if name.endswith(suffix) and not _is_hidden(name))


def find_files(uri: str) -> list[tuple[str, int]]:
    """Return name below the folder and size in bytes of every file in it and in its subfolders, sorted.

    Hidden files are left out, and so is what an object store keeps in place of a folder. A file instead of a folder
    gives one entry whose name is empty.

    Raises:
        DatasetError: it cannot be listed.
    """
    root, found = _find(uri)
    folders = {folder for name in found for folder in _parents(name)}
    files = {name: int(entry.get("size") or 0) for name, entry in found.items() if not _is_marker(entry, folders)}
    below = {name.removeprefix(root).lstrip("/"): size for name, size in files.items()}
    return sorted((name, size) for name, size in below.items() if not any(map(_is_hidden, name.split("/"))))


def find_tree(uri: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Return files with their sizes in bytes, and folders, by their names below a location, sorted.

    Hidden ones are among them. What an object store keeps in place of a folder is one.

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
    """Return the path of a location without a slash at its end, and fsspec's entry for each path below it, uncached."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        return path.rstrip("/"), fs.find(path, detail=True, **options)  # type: ignore[return-value]
    except location_errors() as error:
        raise DatasetError(f"cannot list {uri!r}: {reason(error)}") from error


def _is_file(fs: Any, entry: dict[str, Any]) -> bool:
    # A link to a file is told as neither file nor folder.
    return entry["type"] == "file" or (bool(entry.get("islink")) and fs.isfile(entry["name"]))


def _is_marker(entry: dict[str, Any], folders: set[str]) -> bool:
    """Whether an entry stands for a folder: `NAME/`, an empty `NAME` beside `NAME/...`, or Hadoop's `NAME_$folder$`.

    Consoles and other tools put such empty objects where a store knows no folders.
    """
    name = entry["name"]
    return not entry.get("size") and (name.endswith(("/", _HADOOP_MARKER)) or name in folders)


def _parents(name: str) -> Iterator[str]:
    while "/" in name.strip("/"):
        name = name.rstrip("/").rpartition("/")[0]
        yield name


def _is_hidden(segment: str) -> bool:
    return segment.startswith(".")


def remove_folder(uri: str) -> None:
    """Delete a folder and all below it, if it is there. Where nothing may be deleted it is left, as `remove` does.

    Raises:
        OSError: it could not be deleted for another reason.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # another process may have made it since this one looked
    if isinstance(fs, LocalFileSystem):
        # What another process writes there at this moment is left to it.
        shutil.rmtree(path, ignore_errors=True)
        if os.path.exists(path):
            tell_left(uri)
        return
    try:
        # One by one: fsspec's recursive delete takes `*` and `[1]` in a path for patterns, and deletes other folders.
        names = [name for name in fs.find(path) if not name.endswith("/")] if fs.exists(path) else []
    except FileNotFoundError:
        return  # somebody else was faster
    except driver_errors() as error:
        raise OSError(reason(error)) from error
    for name in names:
        remove(join(uri, name.removeprefix(path).lstrip("/")))


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


def check_writable(uri: str) -> None:
    """Find out before the work, not after it, that nothing can be written to a folder. Leave nothing there.

    Where nothing may be deleted, one hidden empty file stays, the same for every try.

    Raises:
        DatasetError: writing a small file there failed.
    """
    probe = join(uri, _PROBE)
    made = new_folders(uri)
    try:
        write_bytes(probe, b"")
        fs, path = filesystem(probe)
        # Another process may try at the same time, or nothing may be deleted here; neither stands against writing.
        with contextlib.suppress(OSError):
            fs.rm_file(path)
        remove_empty(made)
    except location_errors() as error:
        raise DatasetError(f"cannot write to {uri!r}: {reason(error)}") from error


def new_folders(uri: str) -> list[Path]:
    """Return the local folders that writing to a folder would make, innermost first; none on an object store."""
    fs, path = filesystem(uri)
    folders = (Path(path), *Path(path).parents) if isinstance(fs, LocalFileSystem) else ()
    return [folder for folder in folders if not folder.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Delete those of some local folders, given innermost first, that hold nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
