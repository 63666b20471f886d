"""ONNX files: weights whose products do not saturate, and weights in a second file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.export import ExportedProgram

from pipeline.artifacts.onnx import open_onnx, save_onnx
from pipeline.errors import CheckpointError, DatasetError, FormError
from pipeline.quantization import BitWidths
from pipeline.quantization.agreement import largest_deviation, relative_error
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.graphs import convert, export_images, reexport
from pipeline.quantization.observe import RangeObserver
from tests.conftest import make_tiny_model


def test_products_that_would_saturate_are_right_on_every_processor(tmp_path: Path) -> None:
    """Weights all positive and as large as can be: two products of an 8-bit value and one of them exceed 16 bits.

    With int8 weights ONNX Runtime's logits are wrong on x86 processors without VNNI.
    """
    model = make_tiny_model()
    with torch.no_grad():
        for block in model.blocks:  # type: ignore[union-attr]
            block.mlp.fc1.weight.abs_().clamp_(min=0.15)
            block.mlp.fc2.weight.abs_().clamp_(min=0.08)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    observer = RangeObserver(model, "linear")
    observer.observe([CalibrationBatch(images, torch.arange(16).repeat(16, 1), [str(row) for row in range(16)])])
    program = export_images(model, "linear")
    quantized = reexport(convert(program, BitWidths(), "linear", observer.ranges()), program)
    with torch.no_grad():
        floating, expected = model(images), quantized.module()(images)
    save_onnx(quantized, tmp_path / "x.onnx", weights="uint8")
    deviation = relative_error(open_onnx(str(tmp_path / "x.onnx")).predict(images), expected)
    assert deviation < min(0.01, largest_deviation(expected, floating))


@pytest.mark.parametrize(
    ("weights", "activations", "saturates"),
    [(8, 8, True), (7, 8, False), (8, 7, False), (4, 8, False), (8, 16, False), (16, 8, False), (2, 2, False)],
)
def test_only_full_8_bits_can_saturate(weights: int, activations: int, saturates: bool) -> None:
    assert BitWidths(weights=weights, activations=activations).can_saturate == saturates


def test_weights_beside_wide_activations_compute_what_was_calibrated(
    quantized: Callable[[BitWidths], ExportedProgram], tmp_path: Path
) -> None:
    """ONNX Runtime rounds activations to 8 bits where 8-bit weights are multiplied with what it takes for floats."""
    program, images = quantized(BitWidths(activations=16)), torch.randn(4, 3, 32, 32)
    save_onnx(program, tmp_path / "x.onnx", weights="int16")
    with torch.no_grad():
        expected = program.module()(images)
    assert relative_error(open_onnx(str(tmp_path / "x.onnx")).predict(images), expected) < 1e-3


def test_weights_of_four_bits_are_packed_two_to_a_byte(
    packed: Path, quantized: Callable[[BitWidths], ExportedProgram], model: nn.Module
) -> None:
    tensors = [tensor for tensor in onnx.load(packed).graph.initializer if len(tensor.dims) > 1]
    stored = {tensor.name: tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.INT4}
    assert len(stored) == 10
    numbers = sum(int(np.prod(tensor.dims)) for tensor in stored.values())
    assert sum(len(tensor.raw_data) for tensor in stored.values()) == numbers / 2
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, floating = quantized(BitWidths(weights=4)).module()(images), model(images)
    logits = open_onnx(str(packed)).predict(images)
    assert (logits - expected).abs().median() < 1e-5
    assert relative_error(logits, expected) < largest_deviation(expected, floating)


def test_weights_of_more_bits_are_not_cut_to_four(
    quantized: Callable[[BitWidths], ExportedProgram], tmp_path: Path
) -> None:
    with pytest.raises(FormError, match=r"x\.onnx: weights of more than 4 bits cannot be stored in 4"):
        save_onnx(quantized(BitWidths(weights=5)), tmp_path / "x.onnx", weights="int4")


class Eigenvalues(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(images).flatten(1)


def test_an_operator_that_onnx_lacks_is_a_reason_that_lasts(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Eigenvalues(), (torch.zeros(2, 3, 2, 2),), dynamic_shapes=({0: batch},))
    with pytest.raises(FormError, match=r"the model was not converted to ONNX: DispatchError: .*linalg_eigh"):
        save_onnx(program, tmp_path / "x.onnx")


@pytest.fixture
def split(programs: Callable[[Placement], ExportedProgram], tmp_path: Path) -> Path:
    """The float model with its weights in a second file."""
    folder = tmp_path / "split"
    folder.mkdir()
    written = save_onnx(programs("linear"), folder / "x.onnx", max_inline_bytes=1000)
    assert [path.name for path in written] == ["x.onnx", "x.onnx.data"]
    assert written[0].stat().st_size < written[1].stat().st_size
    return folder


def test_weights_in_a_second_file_are_read_from_anywhere(split: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = make_tiny_model()(images)
    memory = fsspec.filesystem("memory")
    for name in ("x.onnx", "x.onnx.data"):
        memory.pipe_file(f"/split-weights/{name}", (split / name).read_bytes())
    for uri in (str(split / "x.onnx"), "memory://split-weights/x.onnx"):
        torch.testing.assert_close(open_onnx(uri).predict(images), expected, atol=1e-4, rtol=1e-4)


def test_a_second_file_that_is_missing_is_named(split: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/lone/x.onnx", (split / "x.onnx").read_bytes())
    (split / "x.onnx.data").unlink()
    for uri in (str(split / "x.onnx"), "memory://lone/x.onnx"):
        with pytest.raises(DatasetError, match=r"cannot read 'x.onnx.data', which belongs to '.*x.onnx'"):
            open_onnx(uri)


@pytest.mark.parametrize("name", ["../x.onnx.data", "/etc/hostname", "a/../../x.onnx.data"])
def test_a_second_file_elsewhere_is_not_read(name: str, split: Path, tmp_path: Path) -> None:
    shutil.copy(split / "x.onnx.data", tmp_path / "x.onnx.data")
    model = onnx.load(split / "x.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    (split / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="which does not lie beside it"):
        open_onnx(str(split / "x.onnx"))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty$"),
        (LFS, "it is a Git LFS pointer, not the file itself: run `git lfs pull`"),
        (b"<!DOCTYPE html><html></html>", "it is a web page"),
        (b"404: not found", r"it is text, not an ONNX model \('404: not found'\)"),
        (b'{"a": 1}', "it is JSON, not an ONNX model"),
        (b"\x89PNG\r\n", "it is an image, not an ONNX model"),
        (safetensors.torch.save({"a": torch.zeros(1)}), r"it is a checkpoint \(safetensors\), not an ONNX model"),
    ],
)
def test_what_lies_under_the_name_of_a_model_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"cannot read '.*x\.onnx' as an ONNX model: {message}"):
        open_onnx(str(tmp_path / "x.onnx"))


def test_a_second_file_that_is_no_weights_or_cut_off_is_reported(split: Path) -> None:
    data = split / "x.onnx.data"
    whole = data.read_bytes()
    for content, message in (
        (LFS, "as weights: it is a Git LFS pointer"),
        # As long as the weights: ONNX Runtime would read it.
        (b"<html>".ljust(len(whole)), "as weights: it is a web page"),
        (b"", "as weights: it is empty"),
        (whole[:-100], rf"is cut off: it has {len(whole) - 100} bytes, the model needs {len(whole)}; copy it again"),
    ):
        data.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"'x\.onnx\.data', which belongs to '.*x\.onnx', {message}"):
            open_onnx(str(split / "x.onnx"))
    # Numbers may begin like a web page.
    data.write_bytes(b"<" + whole[1:])
    open_onnx(str(split / "x.onnx"))
