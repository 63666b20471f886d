"""Artifacts as files: both take images alone, at any batch size, and compute what the quantized graph does."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pipeline.artifacts.formats import FormatName, load_quantized
from pipeline.quantization import BitWidths
from pipeline.quantization.batches import CalibrationBatch
from tests.quantized import DATA_FORMATS

W8A8, W4A4 = BitWidths(), BitWidths(weights=4, activations=4)
Files = Callable[[BitWidths, FormatName], Path]


def images(batch: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run(path: Path, batch: Tensor) -> Tensor:
    return load_quantized(str(path)).predict(batch)


@pytest.mark.parametrize("bits", [W8A8, W4A4], ids=lambda bits: bits.label)
@pytest.mark.parametrize("batch", [1, 2, 500])
def test_the_pt2_file_equals_the_graph_to_the_last_bit(
    batch: int, bits: BitWidths, files: Files, quantized: Callable[[BitWidths], ExportedProgram]
) -> None:
    with torch.no_grad():
        expected = quantized(bits).module()(images(batch))
    assert torch.equal(run(files(bits, "pt2"), images(batch)), expected)


@pytest.mark.parametrize("bits", [W8A8, W4A4], ids=lambda bits: bits.label)
@pytest.mark.parametrize("batch", [1, 2, 500])
def test_the_onnx_file_agrees_with_the_pt2_file(batch: int, bits: BitWidths, files: Files) -> None:
    expected, result = run(files(bits, "pt2"), images(batch)), run(files(bits, "onnx"), images(batch))
    # A value at the edge between two integers may round to either: at 4 bits that is a large step.
    agree = (result.argmax(1) == expected.argmax(1)).float().mean().item()
    assert agree >= (0.99 if bits == W8A8 else 0.97)
    assert (result - expected).abs().median() < 1e-5


def test_narrow_activations_saturate_at_their_own_limits(files: Files) -> None:
    """QuantizeLinear saturates at 255; what lies outside of the calibrated range must come out as 15 all the same."""
    beyond = images(8, scale=10.0)
    expected, result = run(files(W4A4, "pt2"), beyond), run(files(W4A4, "onnx"), beyond)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)

    model = onnx.load(files(W4A4, "onnx"))
    clips = {node.output[0] for node in model.graph.node if node.op_type == "Clip"}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    assert all(node.input[0] in clips for node in quantizers)


def test_without_clipping_narrow_activations_would_differ(files: Files, tmp_path: Path) -> None:
    model = onnx.load(files(W4A4, "onnx"))
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Clip"}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            node.input[0] = sources[node.input[0]]
    unclipped = tmp_path / "unclipped.onnx"
    onnx.save(model, unclipped)
    beyond = images(8, scale=10.0)
    assert (run(unclipped, beyond) - run(files(W4A4, "pt2"), beyond)).abs().max() > 0.1


@pytest.mark.parametrize("kind", DATA_FORMATS)
def test_twelve_bits_are_stored_in_sixteen(
    kind: FormatName, files: Files, model: nn.Module, ragged: list[CalibrationBatch]
) -> None:
    bits, calibrated = BitWidths(weights=12, activations=12), ragged[-1].images
    with torch.no_grad():
        expected = model(calibrated)
    error = (run(files(bits, kind), calibrated) - expected).norm() / expected.norm()
    assert 1e-5 < error < 5e-3


def test_onnx_stores_weights_in_8_bits_and_names_its_ends(files: Files, model: nn.Module) -> None:
    graph = onnx.load(files(W8A8, "onnx")).graph
    stored = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1 and "_frozen" in tensor.name}
    assert stored == {onnx.TensorProto.UINT8}
    (entry,), (end,) = graph.input, graph.output
    assert (entry.name, end.name) == ("images", "logits")
    assert entry.type.tensor_type.shape.dim[0].dim_param == end.type.tensor_type.shape.dim[0].dim_param == "batch"
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == 10
    assert kinds.count("DequantizeLinear") == 20
    assert files(W8A8, "onnx").stat().st_size < 0.5 * sum(p.numel() * 4 for p in model.parameters())


@pytest.mark.parametrize("kind", DATA_FORMATS)
def test_artifacts_do_not_tell_of_the_machine_they_were_made_on(kind: FormatName, files: Files) -> None:
    content = files(W8A8, kind).read_bytes()
    assert not re.search(rb"site-packages|File \"/", content)


def test_the_pt2_file_runs_where_only_torch_and_torchao_are(files: Files) -> None:
    path = files(W8A8, "pt2")
    code = (
        "import sys, torch, torchao.quantization.pt2e; "
        f"program = torch.export.load({str(path)!r}).module(); "
        "print(tuple(program(torch.zeros(3, 3, 32, 32)).shape)); "
        "assert 'pipeline' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(3, 10)", result.stderr


def test_the_onnx_file_opens_with_default_options(files: Files) -> None:
    session = onnxruntime.InferenceSession(files(W8A8, "onnx"), providers=["CPUExecutionProvider"])
    logits: Any = session.run(None, {"images": images(3).numpy()})[0]
    assert logits.shape == (3, 10)
