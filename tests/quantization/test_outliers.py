"""Refined weights, corrected biases and equalization against planted outliers: fewer bits hurt more, and these less."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from benchmarks.outliers import FACTORS, plant_outliers
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths, RoundingName
from pipeline.quantization.equalization import equalize, find_pairs
from pipeline.quantization.graphs import convert, export_images
from pipeline.quantization.moments import MomentObserver, Moments
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.refinement import Refinement

W4A8, W4A4 = BitWidths(weights=4, activations=8), BitWidths(weights=4, activations=4)


def batches(seed: int, count: int = 8) -> list[CalibrationBatch]:
    """Whole images, in batches of 8."""
    generator = torch.Generator().manual_seed(seed)
    return [
        CalibrationBatch(
            torch.randn(8, 3, 32, 32, generator=generator),
            torch.arange(16).expand(8, 16),
            [f"{batch}-{row}" for row in range(8)],
        )
        for batch in range(count)
    ]


CALIBRATION, HELD_OUT = batches(0), torch.cat([batch.images for batch in batches(1)])


@dataclass(frozen=True)
class Calibrated:
    """A model with what a calibration saw of it."""

    model: nn.Module
    program: ExportedProgram
    ranges: Ranges

    @classmethod
    def of(cls, model: nn.Module) -> "Calibrated":
        observer = RangeObserver(model, "linear")
        observer.observe(CALIBRATION)
        return cls(model, export_images(model, "linear"), observer.ranges())

    def error(self, bits: BitWidths, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Return the errors of the quantized model's logits on held-out images, over the logits' norm, [B, 10]."""
        graph = convert(self.program, bits, "linear", self.ranges, parameters=parameters)
        with torch.no_grad():
            exact = self.model(HELD_OUT)
            return (graph(HELD_OUT) - exact) / exact.norm()


@pytest.fixture(scope="module")
def planted(model: nn.Module) -> Calibrated:
    """Three channels of every LayerNorm are 20, 12 and 8 times as large; the function is that of the tiny model."""
    return Calibrated.of(plant_outliers(model))


@pytest.fixture(scope="module")
def moments(planted: Calibrated) -> dict[str, Moments]:
    by_bits: dict[int, Ranges] = {4: planted.ranges, 8: planted.ranges}
    observer = MomentObserver(planted.model, "linear", planted.ranges, by_bits, products=True)
    observer.observe(CALIBRATION)
    return observer.moments()


def refined(
    planted: Calibrated, moments: dict[str, Moments], bits: BitWidths, rounding: RoundingName, *, corrects: bool
) -> Tensor:
    refinement = Refinement(planted.program, "linear", moments, rounding=rounding, bias_correction=corrects)
    return planted.error(bits, refinement.parameters(bits))


def test_gptq_takes_part_of_the_error_that_outliers_bring_to_weights_of_four_bits(
    model: nn.Module, planted: Calibrated, moments: dict[str, Moments]
) -> None:
    """The columns that read outliers are small beside the others of their row, and nearest rounding loses them."""
    plain, nearest = Calibrated.of(model).error(W4A8).norm(), planted.error(W4A8).norm()
    assert nearest > 1.5 * plain
    assert refined(planted, moments, W4A8, "gptq", corrects=False).norm() < 0.9 * nearest


def test_bias_correction_takes_the_mean_error_that_outliers_bring_to_activations_of_four_bits(
    planted: Calibrated, moments: dict[str, Moments]
) -> None:
    nearest, corrected = planted.error(W4A4), refined(planted, moments, W4A4, "nearest", corrects=True)
    assert corrected.mean(dim=0).norm() < 0.5 * nearest.mean(dim=0).norm()
    assert corrected.norm() < 0.9 * nearest.norm()


def plant_in_values(model: nn.Module) -> nn.Module:
    """Return a copy whose attentions have three large channels of the values, which the projections divide again."""
    planted: nn.Module = copy.deepcopy(model)
    width = planted.get_parameter("blocks.0.attn.proj.weight").shape[1]
    with torch.no_grad():
        for block in range(2):
            qkv, proj = (f"blocks.{block}.attn.{name}" for name in ("qkv", "proj"))
            for channel, factor in zip((5, 17, 30), FACTORS, strict=True):
                planted.get_parameter(f"{qkv}.weight")[2 * width + channel] *= factor
                planted.get_parameter(f"{qkv}.bias")[2 * width + channel] *= factor
                planted.get_parameter(f"{proj}.weight")[:, channel] /= factor
    return planted


def test_equalization_undoes_outliers_of_the_values_and_what_they_cost(model: nn.Module) -> None:
    planted = Calibrated.of(plant_in_values(model))
    torch.testing.assert_close(planted.model(HELD_OUT), model(HELD_OUT), rtol=1e-4, atol=1e-5)
    ours, plain = (
        equalize(each, find_pairs(export_images(each, "linear"))).state_dict() for each in (planted.model, model)
    )
    for name, values in plain.items():
        torch.testing.assert_close(ours[name], values, rtol=1e-4, atol=1e-5)
    equalized = Calibrated.of(equalize(planted.model, find_pairs(planted.program)))
    bits = BitWidths()
    assert equalized.error(bits).norm() < 0.3 * planted.error(bits).norm()
