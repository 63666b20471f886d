"""Tell files and folders of users from hidden ones, and from what systems leave on disks and in archives."""

import re

_OF_SYSTEMS = re.compile(
    # Folders of the file system itself, on Linux and Windows; a disk check leaves `found.000`.
    r"lost\+found|found\.\d{3}|system volume information|\$recycle\.bin"
    # Windows' thumbnails and view settings of a folder; the Mac's own folders on network shares.
    r"|thumbs\.db(:.*)?|ehthumbs(_vista)?\.db|desktop\.ini|network trash folder|temporary items"
    # Storage of Synology, QNAP and NetApp: thumbnails, deleted files and snapshots.
    r"|@eadir|@tmp|@recycle|@recently-snapshot|#recycle|#snapshot|~snapshot"
    # Folders in archives of macOS, and Python's own beside modules.
    r"|__macosx|__pycache__",
    re.IGNORECASE,
)


def is_hidden(segment: str) -> bool:
    """Return whether the name of a file or folder is hidden (`.x`), or is one that no user gives (`lost+found`).

    Args:
        segment: part of a path, without `/`.
    """
    return segment.startswith(".") or _OF_SYSTEMS.fullmatch(segment) is not None
