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
from torch.export import ExportedProgram

from pipeline.artifacts.pt2 import open_pt2, save_pt2
from pipeline.artifacts.pt2_documents import find_code
from pipeline.errors import CheckpointError
from pipeline.quantization import BitWidths
from pipeline.quantization.bit_widths import Placement
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


@pytest.mark.parametrize(
    "target",
    [
        *("torch.ops.load_library", "torch.hub.load", "torch.ops.aten.x.y.z", "#extension"),
        # They write and read files, take foreign memory, or read it without a check.
        *("torch.ops.aten.from_file.default", "torch.ops.aten.save.default", "torch.ops.aten._unsafe_index.Tensor"),
        *("torch.ops.aten.set_.source_Storage", "torch.ops.aten.resize_.default", "torch.ops.aten.empty.memory_format"),
        # They call, import, or have the names of their inputs printed into code.
        *("_operator.call", "_operator.attrgetter", "_operator.getitem", "torch.sym_sum", "torch.sym_fresh_size"),
    ],
)
def test_operators_that_do_not_compute_are_refused(target: str, content: bytes, read: Read) -> None:
    def retarget(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(CheckpointError, match="which is not allowed"):
        read(edit_json(content, "/models/model.json", retarget))


def test_expressions_other_than_sizes_are_refused(content: bytes, read: Read) -> None:
    def evaluate(program: Any) -> None:
        sizes = program["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = "__import__('os')"

    with pytest.raises(CheckpointError, match="could run code: 'expr_str'"):
        read(edit_json(content, "/models/model.json", evaluate))


@pytest.mark.parametrize("name", ["images", "p_model_cls_token"])
def test_names_that_would_be_python_code_are_refused(
    name: str, content: bytes, read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch writes the names of inputs into the code that it makes of a graph."""
    evil = json.dumps(f"{name}=print('ran')").encode()
    renamed = edit(content, "/models/model.json", lambda data: data.replace(f'"{name}"'.encode(), evil))
    assert renamed != content
    with pytest.raises(CheckpointError, match=r"could run code: 'name' is .*print"):
        read(renamed)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["x=print('ran')", 'x"), print("ran', "x.__class__.forward", "x\ny", "é"])
def test_only_names_are_names(name: str) -> None:
    for document in ({"forward_arg_names": ["images", name]}, {"tensor_values": {name: {}}}, {"parameter_name": name}):
        assert find_code(document) is not None
    assert find_code({"names": ["images", "blocks.0.attn.qkv.weight", "blocks.0@1", "L__self___blocks", ""]}) is None


def test_what_names_a_tensor_like_metadata_is_checked_all_the_same() -> None:
    hidden = {"expr_str": "__import__('os')"}
    for name in ("metadata", "as_string", "as_strings", "torch_version", "in_spec"):
        assert find_code({"tensor_values": {name: {"sizes": [{"as_expr": hidden}]}}}) is not None
        assert find_code({"sym_int_values": {name: hidden}}) is not None
    assert find_code({"metadata": {"stack_trace": "File '/a b.py', line 1", "torch_fn": "a;b"}}) is None


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "collections.defaultdict", "context": '{"default_factory_module": "os"}', "children_spec": []},
        {"type": "builtins.dict", "context": '["x=print()"]', "children_spec": []},
        {"type": "builtins.tuple", "context": '{"__enum__": true, "fqn": "os:x", "name": "y"}', "children_spec": []},
        {"type": None, "context": "{}", "children_spec": []},
    ],
)
def test_inputs_that_are_no_plain_containers_are_refused(kind: dict[str, Any]) -> None:
    for spec in (kind, {"type": "builtins.tuple", "context": "null", "children_spec": [kind]}):
        assert find_code({"in_spec": json.dumps([1, spec])}) is not None


def test_expressions_take_no_time() -> None:
    """Once, a text of 30 sizes without a space took as many steps as there are ways to read it."""
    assert find_code({"expr_str": "s11" * 1000 + "!"}) is not None
    assert find_code({"expr_str": "9**9**9**9"}) is not None
    assert find_code({"expr_str": "Pow(Integer(999), Integer(999999999))"}) is not None
    assert find_code({"expr_str": "Mul(Integer(2364), Symbol('s77', positive=True, integer=True))"}) is None
    assert find_code({"expr_str": "12*s0**2 + 1"}) is None


def test_a_program_that_breaks_the_rules_of_its_own_kind_is_refused(content: bytes, read: Read) -> None:
    def in_place(program: Any) -> None:
        program["verifiers"] = ["ATEN"]
        add = next(node for node in program["graph_module"]["graph"]["nodes"] if ".add.Tensor" in node["target"])
        add["target"] = "torch.ops.aten.add_.Tensor"

    with pytest.raises(CheckpointError, match=r"cannot read '.*x\.pt2' as a .pt2 program: .*not functional"):
        read(edit_json(content, "/models/model.json", in_place))


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file on which every write fails")
def test_a_full_disk_is_an_error_that_leaves_the_process_alive(
    programs: Callable[[Placement], ExportedProgram], tmp_path: Path
) -> None:
    (tmp_path / "x.pt2").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        save_pt2(programs("linear"), tmp_path / "x.pt2")
