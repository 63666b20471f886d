"""Recognize the kind of a checkpoint file by its first bytes."""

import io
import struct
import zipfile
from typing import Literal

from pipeline.file_kinds import is_torchscript, zip_members

Readable = Literal["safetensors", "torch", "npz", "index"]

# Archives that unpack to less are not checked: they may hold zeros, which compression shrinks a thousandfold.
_LEAST_LARGE_BYTES, _MOST_EXPANSION = 2**30, 20
# Magic number of torch's format before 1.6, as pickled.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


def readable_kind(name: str, content: bytes) -> Readable | None:
    """Return how to read a checkpoint, judging by its content; None if files of its kind are not read.

    Args:
        name: file name or URI, used only to distinguish the JSON index of a sharded checkpoint from other JSON.
        content: the whole content of the file.
    """
    if len(content) > 9 and content[8:9] == b"{" and struct.unpack("<Q", content[:8])[0] <= len(content) - 8:
        return "safetensors"
    if name.endswith(".index.json") and content.lstrip().startswith(b"{"):
        return "index"
    members = zip_members(content)
    if members is not None:
        if any(member.endswith(".npy") for member in members):
            return "npz"
        return "torch" if _is_torch(members) else None
    return "torch" if is_pickle(content) else None


def expanded_size(content: bytes) -> int | None:
    """Return the bytes that a zip archive would unpack to, if they are out of all proportion; otherwise None.

    Weights hardly shrink, so archives that grow beyond memory were made to.
    """
    if not content.startswith(b"PK\x03\x04") or zip_members(content) is None:
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return excessive_size(archive, len(content))


def excessive_size(archive: zipfile.ZipFile, stored: int) -> int | None:
    """Return the unpacked size of an archive of `stored` bytes if it is out of proportion, otherwise None."""
    size = sum(entry.file_size for entry in archive.infolist())
    return size if size > max(_LEAST_LARGE_BYTES, _MOST_EXPANSION * stored) else None


def is_of_torch(content: bytes) -> bool:
    """Return whether a file that is or contains a pickle was written by `torch.save`."""
    return content.startswith(b"PK") or _LEGACY_MAGIC in content[:64]


def is_pickle(content: bytes) -> bool:
    return content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def pickle_protocol(content: bytes) -> int | None:
    """Return the pickle protocol of a file, or of the pickle in torch's archive; None if it is no pickle."""
    members = zip_members(content)
    if members is None:
        return content[1] if is_pickle(content) else None
    pickled = next((member for member in members if member.endswith("data.pkl")), None)
    if pickled is None:
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(pickled) as file:
        head = file.read(2)
    return head[1] if is_pickle(head) else None


def _is_torch(members: list[str]) -> bool:
    return any(member.endswith("data.pkl") for member in members) and not is_torchscript(members)
