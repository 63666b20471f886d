"""Reading a `.pt2` file as data: torch's own reader unpickles and evaluates what it finds, so look first."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
import torchao.quantization.pt2e  # noqa: F401  (registers the quantization operators)
from torch.export import ExportedProgram

from pipeline.errors import CheckpointError

# Operators that compute; `torch.` names other than these are looked up as attributes and could load anything.
_OPERATORS = re.compile(r"torch\.ops\.(aten|quantized_decomposed)\.\w+\.\w+|_operator\.\w+|torch\.sym_\w+|")
# Sizes as sympy prints them; they are evaluated.
_WORDS = "Symbol|Integer|Rational|Mul|Add|Pow|Max|Min|Mod|FloorDiv|True|False|positive|integer|nonnegative"
# What `torch.export.save` writes, under one folder. torch's reader takes other entries for compiled code (`.so`) or, at
# the root, for a file of an older format, which it unpickles.
_ENTRIES = re.compile(
    r"models/model\.json|data/(weights/(model_weights_config\.json|weight_\d+)"
    r"|constants/(model_constants_config\.json|tensor_\d+)|sample_inputs/model\.pt)"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_SIZES = re.compile(rf"([\s\d,()=*+/-]|'[su]\d+'|[su]\d+|{_WORDS})*")
# What torch and zipfile stumble over in a file that is cut off or mangled.
_UNREADABLE = (zipfile.BadZipFile, RuntimeError, LookupError, ValueError, TypeError, AssertionError, AttributeError)


def read_pt2(content: bytes, uri: str) -> ExportedProgram:
    """The program in the bytes of a `.pt2` file.

    Raises:
        CheckpointError: it is not one, or holds what could run code: pickles, operators that do not compute, or
            expressions other than sizes.
    """
    try:
        _check(content, uri)
        return torch.export.load(io.BytesIO(content))
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot read {uri!r} as a .pt2 program: {type(error).__name__}: {reason}") from error


def _check(content: bytes, uri: str) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [info.filename for info in archive.infolist()]
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        documents = {name: archive.read(name) for name in names if name.endswith(".json")}
    foreign = [name for name in names if _ENTRIES.fullmatch(name.partition("/")[2]) is None]
    models = [name for name in names if "/models/" in name]
    if len(models) != 1 or not models[0].endswith("/model.json") or len(set(names)) != len(names):
        raise CheckpointError(f"{uri!r} is not a .pt2 program: it holds {len(models)} models")
    if foreign or len({name.partition("/")[0] for name in names}) != 1:
        raise CheckpointError(f"{uri!r} holds what a .pt2 program does not, such as {(foreign or names)[0]!r}")
    if any(sizes[name] for name in names if "/sample_inputs/" in name):
        raise CheckpointError(f"{uri!r} holds pickled example inputs, which could run code")
    for key, value in _items([json.loads(document) for document in documents.values()]):
        if not _is_data(key, value):
            raise CheckpointError(f"{uri!r} could run code: {key!r} is {str(value)[:80]!r}")


def _is_data(key: str, value: Any) -> bool:
    """Whether an entry of the archive's documents is one that is only read."""
    if key == "use_pickle" or key == "guards_code":
        return not value
    if key == "path_name":
        return re.fullmatch(r"(weight|tensor)_\d+", str(value)) is not None
    if key == "target":
        return _OPERATORS.fullmatch(str(value)) is not None
    return key != "expr_str" or _SIZES.fullmatch(str(value)) is not None


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner)
