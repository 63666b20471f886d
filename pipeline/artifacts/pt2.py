"""Write and open `.pt2` files, without running code from them."""

import json
import re
import zipfile
from pathlib import Path

import torch
import torchao.quantization.pt2e  # noqa: F401  (registers the quantization operators)
from torch import Tensor
from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram

from pipeline import storage
from pipeline.artifacts.facts import Facts
from pipeline.artifacts.failures import new_archive
from pipeline.artifacts.formats import Format
from pipeline.artifacts.misnamed import check_expansion, describe_misnamed
from pipeline.artifacts.opened import Opened
from pipeline.artifacts.programs import input_shape, without_origins
from pipeline.artifacts.pt2_documents import find_code
from pipeline.documents import parse_json
from pipeline.errors import CheckpointError, one_line

# Name of the file with the `Facts`, under `extra/` in the archive.
_FACTS = "facts.json"
# Entries that `torch.export.save` writes, under one folder. torch's reader takes others for compiled code (`.so`) or,
# at the root, for a file of an older format, which it unpickles.
_ENTRIES = re.compile(
    r"models/model\.json|data/(weights/(model_weights_config\.json|weight_\d+)"
    r"|constants/(model_constants_config\.json|tensor_\d+)|sample_inputs/model\.pt)"
    r"|extra/[^/]+|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
# Errors that torch and zipfile raise for a file that is cut off or mangled.
_UNREADABLE = (
    *(zipfile.BadZipFile, RuntimeError, LookupError, ValueError, TypeError, AssertionError, AttributeError),
    *(SyntaxError, SpecViolationError),
)
# `torch.export.save` stores the example inputs of the export as a pickle. The program runs without them.
_WITHOUT_INPUTS = "set `program.example_inputs = None` and save it again with torch.export.save"

_LISTED = "those that classifiers compute with are allowed, see pipeline/artifacts/pt2_documents.py"


def save_pt2(program: ExportedProgram, path: str | Path, facts: Facts | None = None) -> list[Path]:
    """Write a program as `torch.export.load` reads it, after `import torchao`.

    It is the reference: integers are dequantized before every operator, so it is not fast.

    Args:
        program: a program whose only input is images.
        path: the file to write; its name ends with `.pt2`.
        facts: class names and normalization, for the extra file `facts.json` of the archive.

    Returns:
        The file that was written.

    Raises:
        OSError: the disk is full, or refuses.
    """
    program = without_origins(program)
    program.example_inputs = None
    extra_files = {_FACTS: json.dumps((facts or Facts()).to_strings())}
    with new_archive(path) as file:
        torch.export.save(program, file, extra_files=extra_files)  # pyright: ignore[reportArgumentType]
    return [Path(path)]


def open_pt2(uri: str) -> Opened:
    """Open a `.pt2` program. It has no training mode: what it does was fixed when it was exported.

    Raises:
        DatasetError: there is no such file.
        CheckpointError: it is not a program, takes other than one batch of images, or holds what could run code:
            pickles, operators that do not compute, or expressions other than sizes.
    """
    with storage.local_file(uri) as path:
        try:
            facts = _check(path, uri)
            # A file object, because torch wants a path to end with `.pt2`, and a user's may end differently.
            with path.open("rb") as file:
                exported = torch.export.load(file)
            program = exported.module()
        except _UNREADABLE as error:
            found = _describe_other(path)
            reason = f"it {found}" if found else one_line(error, limit=200)
            raise CheckpointError(f"cannot read {uri!r} as a .pt2 program: {reason}") from error
    batch, *size = input_shape(exported, uri)

    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = program(images)
        return logits.float() if isinstance(logits, Tensor) and logits.is_floating_point() else logits

    return Opened(predict, facts, tuple(size), batch if isinstance(batch, int) else None)


def _check(path: Path, uri: str) -> Facts:
    """Refuse what is not a program, or could run code; returns the facts that were stored with it."""
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        check_expansion(archive, path, uri)
        own = [name for name in names if name.endswith(f"/extra/{_FACTS}")]
        facts = parse_json(archive.read(own[0])) if own else {}
        # Extra files are text that nothing evaluates.
        documents = [archive.read(name) for name in names if name.endswith(".json") and "/extra/" not in name]
    if any("/data/aotinductor/" in name for name in names):
        raise CheckpointError(f"{uri!r} is a compiled package, which is code: only a file named .aoti.pt2 is opened so")
    foreign = [name for name in names if _ENTRIES.fullmatch(name.partition("/")[2]) is None]
    models = [name for name in names if "/models/" in name]
    if len(models) != 1 or not models[0].endswith("/model.json") or len(set(names)) != len(names):
        found = None if models else _describe_other(path)
        message = f"; it {found}" if found else ""
        raise CheckpointError(f"{uri!r} is not a .pt2 program: it holds {len(models)} models{message}")
    if foreign or len({name.partition("/")[0] for name in names}) != 1:
        raise CheckpointError(f"{uri!r} holds what a .pt2 program does not, such as {(foreign or names)[0]!r}")
    if any(sizes[name] for name in names if "/sample_inputs/" in name):
        raise CheckpointError(f"{uri!r} holds pickled example inputs, which could run code: {_WITHOUT_INPUTS}")
    if (code := find_code([parse_json(document) for document in documents])) is not None:
        key, value = code[0], code[1][:80]
        if key == "target":
            raise CheckpointError(
                f"{uri!r} uses the operator {value!r}, which is not allowed, because it may run code: {_LISTED}"
            )
        raise CheckpointError(f"{uri!r} could run code: {key!r} is {value!r}")
    return Facts.from_strings(facts, uri)


def _describe_other(path: Path) -> str | None:
    """Say what a file is that is no program, as the predicate of a sentence; None where that is not known."""
    found = describe_misnamed(path, "a .pt2 program")
    return None if found is None or "exported program" in found else found


FORMAT = Format(
    save=save_pt2,
    open=open_pt2,
    in_torch=True,
    note=lambda _: "reference: dequantizes before every operator, so it is slower than fp32",
)
