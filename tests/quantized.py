"""Fixtures of artifacts and quantization: one tiny model, exported once for all tests, for an export takes seconds."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from pipeline.artifacts.facts import Facts
from pipeline.artifacts.formats import FormatName, ending_of, save
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.graphs import activation_observers, convert, export_images, reexport
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.ranges import Ranges
from tests.conftest import HALF, make_tiny_model

# Compiling a package takes most of a minute: tests/artifacts/test_aoti.py does it once.
DATA_FORMATS: tuple[FormatName, ...] = ("pt2", "onnx")
FACTS = Facts([f"class {letter}" for letter in "abcdefghij"], HALF, HALF)


def read_ranges(prepared: fx.GraphModule) -> Ranges:
    """Return the ranges that torchao's activation observers saw; (inf, -inf) if they saw nothing."""
    return {
        name: (float(observer.min_val), float(observer.max_val))
        for name, observer in activation_observers(prepared).items()
    }


@pytest.fixture(scope="session")
def model() -> nn.Module:
    return make_tiny_model()


@pytest.fixture(scope="session")
def programs(model: nn.Module) -> Callable[[Placement], ExportedProgram]:
    """The tiny model exported for a placement."""
    return cache(lambda placement: export_images(model, placement))


@pytest.fixture(scope="session")
def ragged() -> list[CalibrationBatch]:
    """Images that keep 3, 7 and all 16 of their patches."""
    generator = torch.Generator().manual_seed(0)
    return [
        CalibrationBatch(
            torch.randn(size, 3, 32, 32, generator=generator),
            torch.stack([torch.randperm(16, generator=generator)[:kept].sort().values for _ in range(size)]),
            [f"image-{kept}-{number}" for number in range(size)],
        )
        for kept, size in ((3, 2), (7, 5), (16, 1))
    ]


@pytest.fixture(scope="session")
def quantized(
    model: nn.Module, programs: Callable[[Placement], ExportedProgram], ragged: list[CalibrationBatch]
) -> Callable[[BitWidths], ExportedProgram]:
    """The tiny model quantized, placement `linear`, as a program that takes images."""
    observer = RangeObserver(model, "linear")
    observer.observe(ragged)
    program, ranges = programs("linear"), observer.ranges()
    return cache(lambda bits: reexport(convert(program, bits, "linear", ranges), program))


@pytest.fixture(scope="session")
def files(
    quantized: Callable[[BitWidths], ExportedProgram], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[BitWidths, FormatName], Path]:
    """Artifacts of the tiny model, written once, as calibration writes them."""
    folder = tmp_path_factory.mktemp("artifacts")

    def write(bits: BitWidths, kind: FormatName) -> Path:
        path = folder / f"{bits.label}{ending_of(kind)}"
        save(quantized(bits), path, FACTS, **({"weights": "uint8"} if kind == "onnx" else {}))
        return path

    return cache(write)


@pytest.fixture(scope="session")
def packed(quantized: Callable[[BitWidths], ExportedProgram], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at W4A8 as an ONNX file with two weights in a byte."""
    path = tmp_path_factory.mktemp("packed") / "w4a8.onnx"
    save(quantized(BitWidths(weights=4)), path, FACTS, weights="int4")
    return path
