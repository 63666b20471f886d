"""A `.pt2` file is read as data: what could run code in it is refused before torch sees it."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.artifacts.pt2 import open_pt2
from pipeline.errors import CheckpointError
from pipeline.quantization import BitWidths
from tests.conftest import make_tiny_model

Files = Callable[[BitWidths, str], Path]
Read = Callable[[bytes], Any]


@pytest.fixture
def content(files: Files) -> bytes:
    return files(BitWidths(), "pt2").read_bytes()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Open the bytes of a file named `x.pt2`."""

    def open_bytes(content: bytes) -> Any:
        path = tmp_path / "x.pt2"
        path.write_bytes(content)
        return open_pt2(str(path))

    return open_bytes


class Bomb:
    """Unpickled, it ends the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exit, (3,))


def edit(content: bytes, suffix: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with one of its files changed."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(result, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, change(data) if name.endswith(suffix) else data)
    return result.getvalue()


def edit_json(content: bytes, suffix: str, change: Callable[[Any], None]) -> bytes:
    def apply(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return edit(content, suffix, apply)


def test_our_own_files_are_read(content: bytes, read: Read) -> None:
    assert read(content).predict(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pickled_example_inputs_are_refused(content: bytes, read: Read) -> None:
    bomb = edit(content, "/sample_inputs/model.pt", lambda _: pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="holds pickled example inputs"):
        read(bomb)


def test_a_program_as_torch_saves_it_is_read_after_what_the_refusal_says(tmp_path: Path) -> None:
    program = torch.export.export(make_tiny_model(), (torch.zeros(2, 3, 32, 32),))
    torch.export.save(program, tmp_path / "a.pt2")
    with pytest.raises(CheckpointError, match=r"set `program\.example_inputs = None` and save it again"):
        open_pt2(str(tmp_path / "a.pt2"))
    loaded = torch.export.load(tmp_path / "a.pt2")
    loaded.example_inputs = None
    torch.export.save(loaded, tmp_path / "b.pt2")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = make_tiny_model()(images)
    torch.testing.assert_close(open_pt2(str(tmp_path / "b.pt2")).predict(images), expected)


def test_pickled_weights_are_refused(content: bytes, read: Read) -> None:
    def pickled(config: Any) -> None:
        config["config"]["model.cls_token"]["use_pickle"] = True

    with pytest.raises(CheckpointError, match="could run code: 'use_pickle'"):
        read(edit_json(content, "model_weights_config.json", pickled))


def test_pickled_constants_are_refused(content: bytes, read: Read) -> None:
    def opaque(config: Any) -> None:
        config["config"]["c"] = {"path_name": "opaque_obj_0", "use_pickle": False}

    with pytest.raises(CheckpointError, match="could run code: 'path_name' is 'opaque_obj_0'"):
        read(edit_json(content, "model_constants_config.json", opaque))


@pytest.mark.parametrize("target", ["torch.ops.load_library", "torch.hub.load", "torch.ops.aten.x.y.z", "#extension"])
def test_operators_that_do_not_compute_are_refused(target: str, content: bytes, read: Read) -> None:
    def retarget(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(CheckpointError, match="could run code: 'target'"):
        read(edit_json(content, "/models/model.json", retarget))


def test_expressions_other_than_sizes_are_refused(content: bytes, read: Read) -> None:
    def evaluate(program: Any) -> None:
        sizes = program["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = "__import__('os')"

    with pytest.raises(CheckpointError, match="could run code: 'expr_str'"):
        read(edit_json(content, "/models/model.json", evaluate))


@pytest.mark.parametrize(
    "names",
    [
        # torch's reader of older formats looks at the root, and unpickles.
        ["version", "serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"],
        ["program/data/aotinductor/model/x.so"],
        ["program/data/weights/payload.pt"],
        ["other/models/model.json"],
    ],
)
def test_entries_that_a_program_does_not_have_are_refused(
    names: list[str], content: bytes, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = io.BytesIO(content)
    with zipfile.ZipFile(archive, "a") as target:
        for name in names:
            target.writestr(name, pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"x\.pt2"):
        read(archive.getvalue())


@pytest.mark.parametrize("damage", [b"", b"not a zip", "half"])
def test_corrupt_files_are_refused(damage: bytes | str, content: bytes, read: Read) -> None:
    damaged = content[: len(content) // 2] if isinstance(damage, str) else damage
    with pytest.raises(CheckpointError, match=r"cannot read '.*x\.pt2'"):
        read(damaged)


def test_another_archive_is_refused(read: Read) -> None:
    other = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match=r"holds 0 models; it is a checkpoint \(torch\.save\), not a"):
        read(other.getvalue())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty$"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "it is a web page"),
        (b"404: not found", "it is text, not a .pt2 program"),
        (b"PK\x03\x04cut off", "it is corrupt, a zip archive that is cut off"),
        (safetensors.torch.save({"a": torch.zeros(1)}), r"it is a checkpoint \(safetensors\), not a .pt2 program"),
    ],
)
def test_what_lies_under_the_name_of_a_program_is_reported(content: bytes, message: str, read: Read) -> None:
    with pytest.raises(CheckpointError, match=rf"cannot read '.*x\.pt2' as a .pt2 program: {message}"):
        read(content)
