"""Recognize a file of another kind by its first bytes, and say what to do about it."""

import codecs
import io
import re
import zipfile

# Name of the config in a model folder, as timm and transformers write it.
MODEL_CONFIG = "config.json"

_TORCHSCRIPT = """python -c "import torch; torch.save(torch.jit.load('FILE').state_dict(), 'weights.pth')\""""
_EXPORTED = """python -c "import torch; torch.save(dict(torch.export.load('FILE').state_dict), 'weights.pth')\""""
_ONNX = "its weights have lost their names, take the checkpoint that it was exported from"
_TENSORFLOW = "load it with the library that wrote it, and save the tensors under timm's names with torch.save"
_UNPACK = "unpack it, and give the file inside"
_PULL = "run `git lfs pull` in its repository"
_AGAIN = "download or copy it again"
_DOWNLOAD = "download the file itself"
_WEIGHTS = "give the weights"
_CONVERT = "save it as JPEG or PNG"
# Remedies that apply whatever the file was meant to be.
_FOR_ANY_FILE = (_UNPACK, _PULL, _AGAIN, _DOWNLOAD, _CONVERT)

_LFS_POINTER = b"version https://git-lfs"

# First bytes → what it is, and what to do.
_MAGIC: dict[bytes, tuple[str, str]] = {
    _LFS_POINTER: ("a Git LFS pointer, not the file itself", _PULL),
    b"\x1f\x8b": ("compressed with gzip", _UNPACK),
    b"BZh": ("compressed with bzip2", _UNPACK),
    b"\xfd7zXZ": ("compressed with xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x89HDF": ("an HDF5 file (Keras .h5)", _TENSORFLOW),
    b"GGUF": ("a GGUF file", _TENSORFLOW),
    b"\x93NUMPY": ("a single NumPy array", "save a state dict, {name: tensor}, with torch.save"),
    b"PAR1": ("a Parquet file, not WANTED", _WEIGHTS),
    b"\x89PNG": ("an image, not WANTED", _WEIGHTS),
    b"%PDF": ("a PDF file, not WANTED", _WEIGHTS),
    b"8BPS": ("a Photoshop file", _CONVERT),
    b"\xff\x0a": ("a JPEG XL image", _CONVERT),
}
# Suffixes of files whose first bytes say little.
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
# Kinds of photos, of phones for example, in the container that videos have.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc")
# Bytes that may precede a text: a byte order mark, and white space.
_BLANK = b"\xef\xbb\xbf \t\r\n"
_TENSORFLOW_PART = re.compile(r"\.data-\d+-of-\d+$")


def describe_foreign(name: str, content: bytes) -> str:
    """Say what a file unknown to `readable_kind` is, and what to do, on one line: `is a GGUF file: load it...`.

    Args:
        name: file name or URI.
        content: content of the whole file.
    """
    found = _recognize(content, "a checkpoint", whole=True) or _by_name(name)
    what, instead = found or _text(content, "a checkpoint") or _guess(name, content)
    return _sentence(what, instead.replace("FILE", name.rpartition("/")[2]))


def recognize_foreign(content: bytes, wanted: str, *, whole: bool = True) -> str | None:
    """Say what a file is instead of the wanted kind, from its content alone: `is a web page: download ...`.

    Args:
        content: content of the file, or its beginning.
        wanted: what the file should be, such as `an image`.
        whole: whether `content` is the whole file; otherwise it is the first kilobyte.

    Returns:
        The predicate of a sentence; None if the kind is unknown, or if the content begins like the wanted kind.
    """
    found = _recognize(content, wanted, whole=whole) or _text(content, wanted)
    if found is None or found[0].startswith(wanted):
        return None
    what, instead = found
    return _sentence(what, instead if instead in _FOR_ANY_FILE else "")


def is_lfs_pointer(content: bytes) -> bool:
    """Return whether a file is what Git LFS leaves in place of a file that was not pulled; 200 bytes at most."""
    return content.startswith(_LFS_POINTER)


def _sentence(what: str, instead: str) -> str:
    return f"is {what}: {instead}" if instead else f"is {what}"


def _recognize(content: bytes, wanted: str, *, whole: bool) -> tuple[str, str] | None:
    """Return what a file is and what to do, if its content leaves no doubt."""
    if not content:
        return "empty", ""
    for magic, (what, instead) in _MAGIC.items():
        if content.startswith(magic):
            return what.replace("WANTED", wanted), instead
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        return "a HEIC photo", _CONVERT
    if content[4:8] == b"TFL3":
        return _SUFFIXES[".tflite"]
    if content[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if content.startswith(b"PK\x03\x04"):
        return _foreign_zip(zip_members(content)) if whole else ("a zip archive", _UNPACK)
    # Checked before the name, because a failed download has the file's name too.
    if _is_markup(content):
        return "a web page (HTML or XML), perhaps an error or a login", _DOWNLOAD
    return None


def _by_name(name: str) -> tuple[str, str] | None:
    for suffix, kind in _SUFFIXES.items():
        if name.lower().endswith(suffix):
            return kind
    return ("a part of a TensorFlow checkpoint", _TENSORFLOW) if _TENSORFLOW_PART.search(name) else None


def _is_markup(content: bytes) -> bool:
    return content[:512].lstrip(_BLANK)[:1] == b"<"


def _foreign_zip(members: list[str] | None) -> tuple[str, str]:
    if members is None:
        return "corrupt, a zip archive that is cut off", _AGAIN
    if is_torchscript(members):
        return "a TorchScript archive, which is code", f"save its weights alone: {_TORCHSCRIPT}"
    if any(member.endswith(("archive_format", "serialized_exported_program.json")) for member in members):
        return "an exported program (.pt2)", f"save its weights alone: {_EXPORTED}"
    if any(member.endswith("model.weights.h5") for member in members):
        return "a Keras model", _TENSORFLOW
    return f"a zip archive of {len(members)} files ({', '.join(members[:3])})", _UNPACK


def _text(content: bytes, wanted: str) -> tuple[str, str] | None:
    """Say what kind of text a file is; None if it is not text."""
    head = content[:512].lstrip(_BLANK)
    if head[:1] in (b"{", b"["):
        return f"JSON, not {wanted}", "give the weights; the index of a sharded checkpoint ends in .index.json"
    try:
        # Incremental, because the cut may go through a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(content[:512])
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character in "\r\n\t" for character in text):
        return None
    return f"text, not {wanted} ({' '.join(text.split())[:60]!r})", ""


def _guess(name: str, content: bytes) -> tuple[str, str]:
    """Guess from the first bytes what kind of checkpoint a file may have been."""
    if name.lower().endswith(".safetensors"):
        return "corrupt, a safetensors file that is cut off or mangled", _AGAIN
    # msgpack's first byte of a map of 1 to 15 entries, or of more.
    if 0x81 <= content[0] <= 0x8F or content[0] in (0xDE, 0xDF):
        return _SUFFIXES[".msgpack"]
    # An ONNX protocol buffer: field 1, the IR version, and then the producer's name.
    if content[0] == 0x08 and content[2:3] == b"\x12":
        return _SUFFIXES[".onnx"]
    return "not a checkpoint, or corrupt", "it is none of safetensors, torch.save's and npz"


def zip_members(content: bytes) -> list[str] | None:
    """Return the names in a zip archive; None if it is none, or is truncated."""
    if not content.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError):
        return None


def is_torchscript(members: list[str]) -> bool:
    return any(member.endswith("constants.pkl") for member in members)
