"""Recognize files that are not the artifact their name says: LFS pointers, web pages, checkpoints."""

import zipfile
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.file_kinds import recognize_foreign
from pipeline.models.containers import excessive_size, readable_kind

# Size in bytes above which a file is judged by its beginning alone.
_MOST_BYTES = 2**28
_HEAD = 1024


def describe_misnamed(path: Path, wanted: str) -> str | None:
    """Say what a file is that could not be read, as the predicate of a sentence; None where that is not known.

    Args:
        path: path of the file on this machine.
        wanted: what the file should be, such as `an ONNX model`.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES)
    whole = len(content) == path.stat().st_size
    # The index of a sharded checkpoint is JSON, which is reported below.
    if (kind := readable_kind("", content) if whole else None) is not None:
        writer = {"torch": "torch.save"}.get(kind, kind)
        return f"is a checkpoint ({writer}), not {wanted}: give it a name that ends as checkpoints do"
    return recognize_foreign(content, wanted, whole=whole)


def check_expansion(archive: zipfile.ZipFile, path: Path, uri: str) -> None:
    """Refuse an archive that unpacks to many times its size, before anything in it is read.

    Raises:
        CheckpointError: the archive would unpack to many times its size.
    """
    stored = path.stat().st_size
    if (size := excessive_size(archive, stored)) is not None:
        raise CheckpointError(f"{uri!r} would unpack {stored} bytes to {size}: it is no artifact")


def describe_misnamed_data(path: Path) -> str | None:
    """Return what a file is instead of a file of numbers, or None where it may be one.

    Numbers may begin with any byte, so that only a text is taken for something else.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    text = head.decode("ascii", errors="replace")
    if not all(character.isascii() and (character.isprintable() or character.isspace()) for character in text):
        return None
    return recognize_foreign(head, "weights", whole=path.stat().st_size <= _HEAD)
