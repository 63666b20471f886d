"""What kind of file a checkpoint is, from its first bytes; and how to convert the kinds that are not read."""

import codecs
import io
import re
import struct
import zipfile
from typing import Literal

Readable = Literal["safetensors", "torch", "npz", "index"]

_TORCHSCRIPT = """python -c "import torch; torch.save(torch.jit.load('FILE').state_dict(), 'weights.pth')\""""
_EXPORTED = """python -c "import torch; torch.save(dict(torch.export.load('FILE').state_dict), 'weights.pth')\""""
_ONNX = "its weights have lost their names, take the checkpoint that it was exported from"
_TENSORFLOW = "load it with the library that wrote it, and save the tensors under timm's names with torch.save"
_UNPACK = "unpack it, and give the file inside"

# First bytes → what it is, and what to do.
_MAGIC: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository"),
    b"\x1f\x8b": ("compressed with gzip", _UNPACK),
    b"BZh": ("compressed with bzip2", _UNPACK),
    b"\xfd7zXZ": ("compressed with xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x89HDF": ("an HDF5 file (Keras .h5)", _TENSORFLOW),
    b"GGUF": ("a GGUF file", _TENSORFLOW),
    b"\x93NUMPY": ("a single NumPy array", "save a state dict, {name: tensor}, with torch.save"),
    b"PAR1": ("a Parquet file, not a checkpoint", "give the weights"),
    b"\x89PNG": ("an image, not a checkpoint", "give the weights"),
    b"%PDF": ("a PDF file, not a checkpoint", "give the weights"),
}
# Ends of names, for kinds whose first bytes say little.
_SUFFIXES: dict[str, tuple[str, str]] = {
    ".onnx": ("an ONNX model", _ONNX),
    ".msgpack": ("a Flax checkpoint (msgpack)", _TENSORFLOW),
    ".pb": ("a TensorFlow graph", _TENSORFLOW),
    ".tflite": ("a TensorFlow Lite model", _ONNX),
    ".engine": ("a TensorRT engine", _ONNX),
    ".mlmodel": ("a Core ML model", _ONNX),
    ".index": ("the index of a TensorFlow checkpoint", _TENSORFLOW),
    ".distcp": ("a part of a distributed checkpoint", "give its folder to torch's dcp_to_torch"),
}
# The number that torch's format before 1.6 begins with, as pickled.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_TENSORFLOW_PART = re.compile(r"\.data-\d+-of-\d+$")


def readable_kind(name: str, content: bytes) -> Readable | None:
    """Return how a checkpoint is read, by its content and not by its name; None where it is of another kind.

    Args:
        name: file name or URI; only tells the JSON index of a sharded checkpoint from other JSON.
        content: the whole file.
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


def is_of_torch(content: bytes) -> bool:
    """Whether a file that is a pickle, or holds one, was written by `torch.save`."""
    return content.startswith(b"PK") or _LEGACY_MAGIC in content[:64]


def is_pickle(content: bytes) -> bool:
    return content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def pickle_protocol(content: bytes) -> int | None:
    """Return the protocol that a file was pickled with, within torch's archive or alone; None where it is no pickle."""
    members = zip_members(content)
    if members is None:
        return content[1] if is_pickle(content) else None
    pickled = next((member for member in members if member.endswith("data.pkl")), None)
    if pickled is None:
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(pickled) as file:
        head = file.read(2)
    return head[1] if is_pickle(head) else None


def zip_members(content: bytes) -> list[str] | None:
    """Return the names in a zip archive; None where it is none, or is cut off."""
    if not content.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError):
        return None


def _is_torch(members: list[str]) -> bool:
    return any(member.endswith("data.pkl") for member in members) and not _is_torchscript(members)


def _is_torchscript(members: list[str]) -> bool:
    return any(member.endswith("constants.pkl") for member in members)


def describe_foreign(name: str, content: bytes) -> str:
    """Say what a file is that `readable_kind` does not know, and what to do, on one line."""
    what, instead = _foreign(name, content)
    return f"is {what}: {instead.replace('FILE', name.rpartition('/')[2])}" if instead else f"is {what}"


def _foreign(name: str, content: bytes) -> tuple[str, str]:
    if not content:
        return "empty", ""
    for magic, told in _MAGIC.items():
        if content.startswith(magic):
            return told
    if content[4:8] == b"TFL3":
        return _SUFFIXES[".tflite"]
    if content[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if content.startswith(b"PK\x03\x04"):
        return _foreign_zip(zip_members(content))
    for suffix, told in _SUFFIXES.items():
        if name.lower().endswith(suffix):
            return told
    if _TENSORFLOW_PART.search(name):
        return "a part of a TensorFlow checkpoint", _TENSORFLOW
    return _foreign_text(content) or _foreign_binary(name, content)


def _foreign_zip(members: list[str] | None) -> tuple[str, str]:
    if members is None:
        return "corrupt, a zip archive that is cut off", "download or copy it again"
    if _is_torchscript(members):
        return "a TorchScript archive, which is code", f"save its weights alone: {_TORCHSCRIPT}"
    if any(member.endswith(("archive_format", "serialized_exported_program.json")) for member in members):
        return "an exported program (.pt2)", f"save its weights alone: {_EXPORTED}"
    if any(member.endswith("model.weights.h5") for member in members):
        return "a Keras model", _TENSORFLOW
    return f"a zip archive of {len(members)} files ({', '.join(members[:3])})", _UNPACK


def _foreign_text(content: bytes) -> tuple[str, str] | None:
    """Say what a text is; None where it is none."""
    head = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:1] == b"<":
        return "a web page (HTML or XML), perhaps an error or a login", "download the file itself"
    if head[:1] in (b"{", b"["):
        return "JSON, not a checkpoint", "give the weights; the index of a sharded checkpoint ends in .index.json"
    try:
        # Incremental: the cut may go through a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(content[:512])
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character in "\r\n\t" for character in text):
        return None
    return f"text, not a checkpoint ({' '.join(text.split())[:60]!r})", ""


def _foreign_binary(name: str, content: bytes) -> tuple[str, str]:
    if name.lower().endswith(".safetensors"):
        return "corrupt, a safetensors file that is cut off or mangled", "download or copy it again"
    # A map of 1 to 15 entries, or of more, as msgpack writes it.
    if 0x81 <= content[0] <= 0x8F or content[0] in (0xDE, 0xDF):
        return _SUFFIXES[".msgpack"]
    # Field 1 of a protocol buffer, the IR version, and then the producer's name.
    if content[0] == 0x08 and content[2:3] == b"\x12":
        return _SUFFIXES[".onnx"]
    return "not a checkpoint, or corrupt", "it is none of safetensors, torch.save's and npz"
