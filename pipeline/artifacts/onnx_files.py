"""Find and check the files of an ONNX model: the graph, and weights stored beside it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.artifacts.misnamed import describe_misnamed, describe_misnamed_data
from pipeline.errors import CheckpointError, one_line


@contextlib.contextmanager
def local_files(uri: str) -> Iterator[Path]:
    """Give the path of a model on this machine, with the files that it needs beside it.

    Raises:
        DatasetError: there is no such file, or a file that it needs is missing.
        CheckpointError: the file is not an ONNX model, keeps weights elsewhere than beside it, or lacks a part of them.
    """
    with storage.local_file(uri) as path:
        for name, size in sorted(_further_files(path, uri).items()):
            storage.bring_beside(uri, name, path)
            _check_weights(path.parent / name, f"{name!r}, which belongs to {uri!r},", size)
        yield path


def refuse_unreadable(path: Path, uri: str, error: BaseException) -> CheckpointError:
    """Return the error to raise for a file that is no ONNX model; it says what the file is, if that is known."""
    found = describe_misnamed(path, "an ONNX model")
    return CheckpointError(f"cannot read {uri!r} as an ONNX model: {f'it {found}' if found else one_line(error)}")


def _further_files(path: Path, uri: str) -> dict[str, int]:
    """Return names of the files that a model keeps weights in, and how many bytes each must have at least.

    Raises:
        CheckpointError: it is not an ONNX model, or names a file that does not lie beside it or below.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise refuse_unreadable(path, uri, error) from error
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    sizes: dict[str, int] = {}
    for tensor in [*model.graph.initializer, *constants]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            name = entries["location"]
            sizes[name] = max(sizes.get(name, 0), _end(entries))
    for name in sizes:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
            raise CheckpointError(f"{uri!r} keeps weights in {name!r}, which does not lie beside it")
    return sizes


def _end(entries: dict[str, Any]) -> int:
    """Return where a tensor ends in its file; 0 where the model does not say."""
    with contextlib.suppress(ValueError):
        return int(entries.get("offset") or 0) + int(entries.get("length") or 0)
    return 0


def _check_weights(path: Path, what: str, needed: int) -> None:
    if (found := describe_misnamed_data(path)) is not None:
        raise CheckpointError(f"cannot read {what} as weights: it {found}")
    size = path.stat().st_size
    if size < needed:
        raise CheckpointError(f"{what} is cut off: it has {size} bytes, the model needs {needed}; copy it again")
