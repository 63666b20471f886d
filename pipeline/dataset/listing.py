"""List a location, and report the files that are skipped."""

import os
import posixpath
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.log import logger

# Left by macOS in archives, and by Python.
_HIDDEN = ("__MACOSX", "__pycache__")


@dataclass
class Listing:
    """Entries below a location, by their names under it; `/` separates folders.

    Attributes:
        files: (name, size in bytes), sorted. A file instead of a folder gives one whose name is empty.
        folders: names, sorted, at every depth; those without a file too, where the store keeps such.
        hidden: number of hidden entries; what is below a hidden folder is not counted.
        loops: links to a folder that they lie in, which are not followed.
        special: devices, pipes and the like.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: int = 0
    loops: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)

    @property
    def empty_folders(self) -> set[str]:
        """Folders with no file at any depth, hidden ones aside."""
        filled = {posixpath.dirname(name) for name, _ in self.files}
        for name in list(filled):
            while name := posixpath.dirname(name):
                filled.add(name)
        return set(self.folders) - filled


def list_tree(uri: str) -> Listing:
    """List a location wholly. Links on a local disk are followed, to files and to folders.

    Raises:
        DatasetError: it, or a folder below it, cannot be listed, or a link leads nowhere.
    """
    _, path = storage.filesystem(uri)
    listing = Listing()
    if not storage.is_local(uri):
        files, folders = storage.find_tree(uri)
        listing.files = [(name, size) for name, size in files if not _is_hidden(name)]
        listing.folders = [name for name in folders if not _is_hidden(name)]
        # Nothing below a hidden folder, but the folder itself.
        hidden = {_hidden_top(name) for name in (*(name for name, _ in files), *folders) if _is_hidden(name)}
        listing.hidden = len(hidden)
    elif os.path.isfile(path):
        listing.files = [("", os.path.getsize(path))]
    else:
        try:
            _walk(uri, Path(path), "", (), listing)
        except OSError as error:
            raise DatasetError(f"cannot list {uri!r}: {type(error).__name__}: {error}") from error
        listing.files.sort()
        listing.folders.sort()
    return listing


def _walk(uri: str, folder: Path, prefix: str, above: tuple[tuple[int, int], ...], listing: Listing) -> None:
    """Add what lies in a local folder; `above` identifies the folders that it lies in."""
    facts = folder.stat()
    above = (*above, (facts.st_dev, facts.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if _is_hidden(entry.name):
                listing.hidden += 1
            elif entry.is_dir():
                facts = entry.stat()
                if (facts.st_dev, facts.st_ino) in above:
                    listing.loops.append(name)
                else:
                    listing.folders.append(name)
                    _walk(uri, folder / entry.name, f"{name}/", above, listing)
            elif entry.is_file():
                listing.files.append((name, entry.stat().st_size))
            elif entry.is_symlink():
                raise DatasetError(f"{uri!r}: the link {name!r} leads to {os.readlink(entry)!r}, which is not there")
            else:
                listing.special.append(name)


def report_skipped(uri: str, listing: Listing, kind: str, *, read: Collection[str], unread: Collection[str]) -> None:
    """Print one line on standard error about entries that are not read; nothing where all are.

    Args:
        uri: the location.
        listing: of it.
        kind: what is read, in plural: `images`, say.
        read: names of the files that are read.
        unread: names of files that are not read because another split was asked for; they go unmentioned.
    """
    used = {*read, *unread}
    skipped = sorted({name for name, _ in listing.files} - used) + listing.special
    parts = []
    if skipped:
        parts.append(f"{count(skipped, 'other file')} ({by_suffix(skipped)}), such as {skipped[0]!r}")
    if listing.hidden:
        parts.append(f"{listing.hidden} hidden")
    if listing.loops:
        parts.append(f"the link {listing.loops[0]!r}, which leads to a folder that it lies in")
    if parts:
        logger.warning(f"{uri!r}: only {kind} are read; skipped: {'; '.join(parts)}")


def count(names: Collection[str], noun: str) -> str:
    """Return `3 files`, and `1 file` without the s."""
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def by_suffix(names: Collection[str]) -> str:
    """Return how many files there are of each suffix, the most frequent first."""
    times = Counter(posixpath.splitext(name)[1] or "without suffix" for name in names)
    return ", ".join(f"{number} {suffix}" for suffix, number in times.most_common(5))


def _is_hidden(name: str) -> bool:
    return any(segment.startswith(".") or segment in _HIDDEN for segment in name.split("/"))


def _hidden_top(name: str) -> str:
    """Return the outermost hidden folder or file on the way to a name."""
    segments = name.split("/")
    depth = next(depth for depth, segment in enumerate(segments) if _is_hidden(segment))
    return "/".join(segments[: depth + 1])
