"""OpenVINO runs the ONNX files as they are, and computes what was calibrated."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pipeline.artifacts.formats import FormatName, load_quantized
from pipeline.quantization import BitWidths
from pipeline.quantization.agreement import largest_deviation, relative_error

openvino: Any = pytest.importorskip("openvino", reason="needs the extra `openvino`")


def test_its_import_tells_nobody() -> None:
    assert [name for name in sys.modules if name.startswith("openvino_telemetry.")] == []


def run(path: Path, images: Tensor) -> tuple[Tensor, set[str]]:
    """Return the logits, and the types that products are computed in, as docs/artifacts.md says to run a file.

    By default OpenVINO rounds activations anew, by groups of 32, where the processor has AVX-512, and computes the rest
    in bfloat16 where it can: other integers than those that were calibrated.
    """
    settings = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    logits = torch.from_numpy(compiled({"images": images.numpy()})["logits"].copy())
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return logits, {
        node["runtimePrecision"] for node in nodes if node["layerType"] in ("FullyConnected", "Convolution")
    }


def check(logits: Tensor, expected: Tensor, floating: Tensor) -> None:
    """Compare as a calibration does, and most logits to the fifth digit.

    OpenVINO sums in another order, so that a value at the edge between two integers may round to either.
    """
    assert (logits - expected).abs().median() < 1e-5
    assert relative_error(logits, expected) < largest_deviation(expected, floating)


@pytest.mark.parametrize("bits", [BitWidths(), BitWidths(weights=4, activations=4)], ids=lambda bits: bits.label)
@torch.no_grad()
def test_openvino_agrees_with_the_pt2_file_in_integers(
    bits: BitWidths, files: Callable[[BitWidths, FormatName], Path], model: nn.Module
) -> None:
    """Also with uint8 weights and asymmetric uint8 activations, on processors where int8 weights saturate."""
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    logits, types = run(files(bits, "onnx"), images)
    check(logits, load_quantized(files(bits, "pt2")).predict(images), model(images))
    assert "u8" in types


@torch.no_grad()
def test_openvino_reads_weights_packed_in_four_bits(
    packed: Path, quantized: Callable[[BitWidths], ExportedProgram], model: nn.Module
) -> None:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    logits, _ = run(packed, images)
    check(logits, quantized(BitWidths(weights=4)).module()(images), model(images))


def test_what_tensorrt_refuses_is_in_the_files(files: Callable[[BitWidths, FormatName], Path]) -> None:
    """Its parser takes symmetric int8 alone: docs/artifacts.md says that it does not read these files."""
    graph = onnx.load(files(BitWidths(), "onnx")).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.dtype.name for zero in zeros} == {"uint8"}
    assert any(zero.any() for zero in zeros)
