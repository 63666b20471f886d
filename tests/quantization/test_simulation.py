"""Layers can be quantized one by one in a simulation, which computes what the converted graph does."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from pipeline.quantization import BitWidths
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.graphs import convert
from pipeline.quantization.mixed import ranges_of_layers
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.sensitivity import disagreement, divergence, measure_sensitivity
from pipeline.quantization.simulation import Simulation

W4A4 = BitWidths(weights=4, activations=4)
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ranges(model: nn.Module, ragged: list[CalibrationBatch]) -> dict[int, Ranges]:
    observer = RangeObserver(model, "matmul")
    observer.observe(ragged)
    return {4: observer.ranges(), 8: observer.ranges()}


@pytest.fixture(scope="module")
def simulation(programs: Callable[[Placement], ExportedProgram], ranges: dict[int, Ranges]) -> Simulation:
    return Simulation(programs("matmul"), "matmul", ranges)


def test_a_simulation_computes_what_the_converted_graph_does_with_widths_by_layer(
    simulation: Simulation, programs: Callable[[Placement], ExportedProgram], ranges: dict[int, Ranges]
) -> None:
    widths = dict.fromkeys(simulation.num_weights, W4A4)
    for layer in ("head", "blocks.0.attn", "blocks.1.mlp.fc2"):
        widths[layer] = BitWidths(weights=8, activations=8)
    # Weights and activations of 8 bits stand in the graph beside those of 4.
    converted = convert(programs("matmul"), W4A4, "matmul", ranges_of_layers(ranges, widths), widths)
    with torch.no_grad():
        expected = converted(IMAGES)
    found = simulation.predict(IMAGES, widths, batch_size=4)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert (found - simulation.predict(IMAGES, dict.fromkeys(widths, W4A4))).abs().max() > 0.01


def test_without_quantized_layers_it_is_the_model(simulation: Simulation, model: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(simulation.predict(IMAGES, {}), model(IMAGES), atol=1e-5, rtol=1e-5)


def test_layers_are_modules_with_all_that_is_quantized_in_them(simulation: Simulation, model: nn.Module) -> None:
    sizes = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert simulation.num_weights == sizes | {"blocks.0.attn": 0, "blocks.1.attn": 0}


def test_sensitivity_is_divergence_with_a_layer_alone_and_with_all_others(simulation: Simulation) -> None:
    rows = {row.layer: row for row in measure_sensitivity(simulation, IMAGES, W4A4)}
    assert list(rows) == list(simulation.num_weights)
    reference = simulation.predict(IMAGES, {})
    others = dict.fromkeys([layer for layer in rows if layer != "head"], W4A4)
    assert rows["head"].alone == divergence(simulation.predict(IMAGES, {"head": W4A4}), reference) > 0
    assert rows["head"].without == divergence(simulation.predict(IMAGES, others), reference) > 0


def test_divergence_and_disagreement_by_hand() -> None:
    reference = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    answers = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log() + 3
    assert divergence(answers, reference) == pytest.approx(
        0.5 * (0.75 - 0.25) * torch.tensor(3.0).log().item(), rel=1e-6
    )
    assert divergence(reference, reference) == 0
    assert disagreement(answers, reference) == 50
