"""List a location, and report the files that are skipped."""

import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.log import logger
from pipeline.storage import is_hidden


@dataclass
class Listing:
    """Entries below a location, by their names relative to it; `/` separates folders.

    Attributes:
        files: pairs (name, size in bytes), sorted. If the location is a file, it is listed under an empty name.
        folders: names of folders at every depth, sorted, including empty ones if the store keeps them.
        hidden: names of hidden files and folders, and of what systems leave (`lost+found`). What lies below such a
            folder is left out.
        loops: names of links to a folder that contains them; they are not followed.
        special: names of devices, pipes and the like.
        num_links: number of links that are followed.
        num_links_out: number of followed links that lead out of the folder.
        link_out: name and target of the first link that leads out; None without any.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    num_links: int = 0
    num_links_out: int = 0
    link_out: tuple[str, str] | None = None

    @property
    def empty_folders(self) -> set[str]:
        """Folders without any file, apart from hidden ones, at any depth."""
        filled = {posixpath.dirname(name) for name, _ in self.files}
        for name in list(filled):
            while name := posixpath.dirname(name):
                filled.add(name)
        return set(self.folders) - filled


def list_tree(uri: str) -> Listing:
    """List a location at all depths. On a local disk, links to files and folders are followed.

    Raises:
        DatasetError: the location or a folder below it cannot be listed, or a link is broken.
    """
    _, path = storage.filesystem(uri)
    listing = Listing()
    if not storage.is_local(uri):
        files, folders = storage.find_tree(uri)
        listing.files = [(name, size) for name, size in files if not _is_hidden(name)]
        listing.folders = [name for name in folders if not _is_hidden(name)]
        # Count a hidden folder, and nothing below it.
        hidden = {_hidden_top(name) for name in (*(name for name, _ in files), *folders) if _is_hidden(name)}
        listing.hidden = sorted(hidden)
    elif os.path.isfile(path):
        listing.files = [("", os.path.getsize(path))]
    else:
        try:
            _walk(uri, Path(path), "", (), listing, os.path.realpath(path))
        except OSError as error:
            raise DatasetError(f"cannot list {uri!r}: {type(error).__name__}: {error}") from error
        _report_links(uri, listing)
        listing.files.sort()
        listing.folders.sort()
    return listing


def _walk(uri: str, folder: Path, prefix: str, above: tuple[tuple[int, int], ...], listing: Listing, root: str) -> None:
    """Add the entries of a local folder; `above` identifies the folders that contain it, `root` is the whole one."""
    facts = folder.stat()
    above = (*above, (facts.st_dev, facts.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if is_hidden(entry.name):
                listing.hidden.append(name)
            elif entry.is_dir():
                facts = entry.stat()
                if (facts.st_dev, facts.st_ino) in above:
                    listing.loops.append(name)
                else:
                    listing.folders.append(name)
                    _note_link(entry, name, root, listing)
                    _walk(uri, folder / entry.name, f"{name}/", above, listing, root)
            elif entry.is_file():
                listing.files.append((name, entry.stat().st_size))
                _note_link(entry, name, root, listing)
            elif entry.is_symlink():
                raise DatasetError(f"{uri!r}: the link {name!r} leads to {os.readlink(entry)!r}, which does not exist")
            else:
                listing.special.append(name)


def _note_link(entry: "os.DirEntry[str]", name: str, root: str, listing: Listing) -> None:
    if entry.is_symlink():
        listing.num_links += 1
        target = os.path.realpath(entry)
        if not target.startswith((f"{root.rstrip(os.sep)}{os.sep}", *_blobs(root))):
            listing.num_links_out += 1
            listing.link_out = listing.link_out or (name, target)


def same_files(uri: str, listing: Listing, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of names below a local folder that lead to the same file; empty if no link was followed."""
    if not listing.num_links:
        return []
    folder = storage.filesystem(uri)[1]
    found: dict[tuple[int, int], str] = {}
    pairs = []
    for name in names:
        facts = os.stat(os.path.join(folder, name))
        first = found.setdefault((facts.st_dev, facts.st_ino), name)
        if first != name:
            pairs.append((first, name))
    return pairs


def report_same_images(uri: str, listing: Listing, names: Iterable[str]) -> None:
    """Warn of images that are read twice because of links, such as a folder `latest` beside the one it leads to."""
    pairs = same_files(uri, listing, names)
    if pairs:
        first, second = pairs[0]
        logger.warning(
            f"{uri!r}: {counted(pairs, 'image')} read again by links, such as {second!r}, which is {first!r}"
        )


def _blobs(root: str) -> list[str]:
    """Return the folder that the Hugging Face cache keeps files in, if `root` is in one of its snapshots.

    A snapshot holds links to it: `datasets--me--x/snapshots/0123abcd/data/x.parquet` to `datasets--me--x/blobs/...`.
    """
    repository, snapshots, _ = f"{root}{os.sep}".rpartition(f"{os.sep}snapshots{os.sep}")
    return [os.path.join(repository, "blobs", "")] if snapshots else []


def _report_links(uri: str, listing: Listing) -> None:
    """Report followed links that lead out of a folder: a stranger's link may lead to any file of this machine."""
    if listing.link_out:
        name, target = listing.link_out
        number = f"{listing.num_links_out} link{'' if listing.num_links_out == 1 else 's'}"
        logger.info(f"{uri!r}: followed {number} out of the folder, such as {name!r} to {target!r}")


def check_utf8_names(uri: str, names: Iterable[str]) -> None:
    """Refuse names of files to read, or of classes, that are not UTF-8: no file of ours could hold them.

    Raises:
        DatasetError: a name is not UTF-8.
    """
    for name in names:
        if not _is_text(name):
            raise DatasetError(f"{uri!r}: the name {name!r} is not text in UTF-8: rename it")


def report_skipped(uri: str, listing: Listing, kind: str, *, read: Collection[str], unread: Collection[str]) -> None:
    """Print one line on standard error about entries that are skipped; nothing if all are read.

    Args:
        uri: the location.
        listing: entries of the location.
        kind: what is read, in the plural, such as `images`.
        read: names of the files that are read.
        unread: names of files that are not read because they belong to another split; they are not mentioned.
    """
    used = {*read, *unread}
    skipped = sorted({name for name, _ in listing.files} - used) + listing.special
    parts = []
    if skipped:
        parts.append(f"{counted(skipped, 'other file')} ({by_suffix(skipped)}), such as {skipped[0]!r}")
    if listing.hidden:
        others = sorted({posixpath.basename(name) for name in listing.hidden if not _has_dot(name)})
        parts.append(f"{len(listing.hidden)} hidden" + (f", such as {others[0]!r}" if others else ""))
    if listing.loops:
        parts.append(f"the link {listing.loops[0]!r}, which leads to a folder that contains it")
    if parts:
        logger.warning(f"{uri!r}: only {kind} are read; skipped: {'; '.join(parts)}")


def counted(names: Collection[object], noun: str) -> str:
    """Return `3 files`, and `1 file` without the s."""
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def by_suffix(names: Collection[str]) -> str:
    """Return how many files there are of each suffix, the most frequent first."""
    times = Counter(posixpath.splitext(name)[1] or "without suffix" for name in names)
    return ", ".join(f"{number} {suffix}" for suffix, number in times.most_common(5))


def _is_hidden(name: str) -> bool:
    return any(map(is_hidden, name.split("/")))


def _has_dot(name: str) -> bool:
    return posixpath.basename(name).startswith(".")


def _is_text(name: str) -> bool:
    """Return whether a name is UTF-8; Python reads other bytes as half characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hidden_top(name: str) -> str:
    """Return the outermost hidden folder or file in a name."""
    segments = name.split("/")
    depth = next(depth for depth, segment in enumerate(segments) if is_hidden(segment))
    return "/".join(segments[: depth + 1])
