"""Refined weights and biases: exact over any split of the images, nearer to the float layers, the same in artifacts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from pipeline.errors import ConfigError
from pipeline.models import ModelConfig
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths, Placement, RoundingName
from pipeline.quantization.graphs import convert, export_images
from pipeline.quantization.mixed import ranges_of_layers
from pipeline.quantization.moments import MomentObserver, Moments
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.quantizer import scales_of, weight_spec
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.refinement import Refinement
from pipeline.quantization.rounding import round_gptq, round_nearest
from pipeline.quantization.simulation import Simulation
from pipeline.vit.subset import SubsetViT
from tests.conftest import TINY

W4A4, W8A8 = BitWidths(weights=4, activations=4), BitWidths(weights=8, activations=8)
QKV = "blocks.0.attn.qkv"


@pytest.fixture(scope="module")
def ranges(model: nn.Module, ragged: list[CalibrationBatch]) -> dict[int, Ranges]:
    observer = RangeObserver(model, "linear")
    observer.observe(ragged)
    return {4: observer.ranges(), 8: observer.ranges()}


def observe(model: nn.Module, ranges: dict[int, Ranges], read: Sequence[CalibrationBatch]) -> MomentObserver:
    observer = MomentObserver(model, "linear", ranges[8], ranges, products=True)
    observer.observe(read)
    return observer


@pytest.fixture(scope="module")
def moments(model: nn.Module, ranges: dict[int, Ranges], ragged: list[CalibrationBatch]) -> dict[str, Moments]:
    return observe(model, ranges, ragged).moments()


@pytest.fixture(scope="module")
def refine(
    programs: Callable[[Placement], ExportedProgram], moments: dict[str, Moments]
) -> Callable[[RoundingName, bool], Refinement]:
    return lambda rounding, corrects: Refinement(
        programs("linear"), "linear", moments, rounding=rounding, bias_correction=corrects
    )


def read_inputs(model: nn.Module, layer: str, read: Sequence[CalibrationBatch]) -> Tensor:
    """All that a layer reads of the kept patches, [rows, in], in a forward pass of the model on only these."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in read:
            SubsetViT(model)(batch.images, batch.keep_indices)
    handle.remove()
    return torch.cat([part.flatten(0, -2) for part in seen])


@pytest.mark.parametrize("layer", [QKV, "blocks.1.mlp.fc2"])
def test_moments_are_means_and_products_of_what_the_layer_reads(
    layer: str, model: nn.Module, moments: dict[str, Moments], ragged: list[CalibrationBatch]
) -> None:
    rows = read_inputs(model, layer, ragged).double()
    found = moments[f"{layer}:input"]
    assert found.count == len(rows) == sum(batch.keep_indices.numel() + len(batch.images) for batch in ragged)
    torch.testing.assert_close(found.mean(), rows.mean(dim=0), rtol=0, atol=2 * found.step)
    assert found.products is not None
    products = torch.from_numpy(found.products).double() * found.step**2
    torch.testing.assert_close(products, rows.T @ rows, rtol=1e-3, atol=1e-2)


def test_of_the_patch_embedding_kept_patches_alone_count_once_each(
    model: nn.Module, moments: dict[str, Moments], ragged: list[CalibrationBatch]
) -> None:
    found = moments["patch_embed.proj:input"]
    rows = []
    for batch in ragged:
        patches = F.unfold(batch.images, 8, stride=8).transpose(1, 2)
        rows += [patches[image, keep] for image, keep in enumerate(batch.keep_indices)]
    kept = torch.cat(rows)
    assert found.count == len(kept)
    torch.testing.assert_close(found.mean().float(), kept.mean(dim=0), rtol=0, atol=1e-4)


def test_any_split_of_the_images_adds_up_to_the_same_bits(
    model: nn.Module, ranges: dict[int, Ranges], ragged: list[CalibrationBatch], moments: dict[str, Moments]
) -> None:
    sent: list[Tensor] = []
    observe(model, ranges, ragged[:1]).moments(lambda own: sent.append(own) or own)
    # As the workers add up what each sends, in the same order.
    others = iter(sent)
    total = observe(model, ranges, ragged[1:]).moments(lambda own: own + next(others))
    check_equal_moments(total, moments)


def check_equal_moments(found: dict[str, Moments], expected: dict[str, Moments]) -> None:
    assert found.keys() == expected.keys()
    for point, whole in expected.items():
        ours = vars(found[point])
        assert all(np.array_equal(ours[name], vars(whole)[name]) for name in ("count", "step", "total", "products"))
        assert ours["levels"].keys() == whole.levels.keys()
        assert all(np.array_equal(ours["levels"][bits], whole.levels[bits]) for bits in whole.levels)


def correlated(rows: int = 512, width: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 6, generator=generator) @ torch.randn(6, width, generator=generator) + 0.1 * torch.randn(
        rows, width, generator=generator
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_changes_the_output_less_than_the_nearest_weights_and_stays_on_their_grid(bits: int) -> None:
    inputs = correlated()
    weight = torch.randn(40, inputs.shape[1], generator=torch.Generator().manual_seed(1))
    scales, _ = scales_of(weight_spec(bits), weight)
    nearest = round_nearest(weight, scales, bits)
    found = round_gptq(weight, scales, bits, inputs.T @ inputs)
    torch.testing.assert_close(round_nearest(found, scales, bits), found, rtol=0, atol=0)
    errors = [(inputs @ (values - weight).T).norm() for values in (found, nearest)]
    assert errors[0] < 0.7 * errors[1]


def test_gptq_is_rounding_to_nearest_where_inputs_do_not_go_together() -> None:
    weight = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))
    scales, _ = scales_of(weight_spec(4), weight)
    nearest = round_nearest(weight, scales, 4)
    # A column that is never read, and a layer that read nothing but zeros.
    for hessian in (torch.diag(torch.arange(300.0)), torch.zeros(300, 300)):
        found = round_gptq(weight, scales, 4, hessian)
        # The largest weight lies in the middle of two values.
        torch.testing.assert_close((found - weight).abs(), (nearest - weight).abs(), rtol=0, atol=1e-5)


def test_gptq_in_blocks_of_columns_is_the_rule_column_by_column() -> None:
    inputs = correlated(width=200)
    hessian = (inputs.T @ inputs).double()
    weight = torch.randn(5, 200, generator=torch.Generator().manual_seed(2))
    scales, _ = scales_of(weight_spec(3), weight)
    left, levels = weight.double(), torch.empty(5, 200)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(200)
    for column in range(200):
        inverse = damped[column:, column:].inverse()
        levels[:, column] = (left[:, column] / scales).round().clamp(-4, 3)
        error = (left[:, column] - levels[:, column] * scales) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
    found = round_gptq(weight, scales, 3, hessian)
    assert ((found - levels * scales[:, None]).abs() > 1e-4).double().mean() < 0.01


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("bits", [W4A4, W8A8])
def test_bias_correction_brings_the_mean_error_of_a_layers_output_to_zero(
    rounding: RoundingName,
    bits: BitWidths,
    model: nn.Module,
    ranges: dict[int, Ranges],
    ragged: list[CalibrationBatch],
    refine: Callable[[RoundingName, bool], Refinement],
) -> None:
    layer: Any = model.get_submodule(QKV)
    inputs = read_inputs(model, QKV, ragged)
    low, high = ranges[8][f"{QKV}:input"]
    steps = 2**bits.activations - 1
    scale = (high - low) / steps
    quantized = torch.fake_quantize_per_tensor_affine(inputs, scale, round(-low / scale), 0, steps)
    refinement = refine(rounding, True)
    weight, bias = refinement.weight(QKV, bits.weights), refinement.bias(QKV, bits)
    if weight is None:
        weight = round_nearest(
            layer.weight.detach(), scales_of(weight_spec(bits.weights), layer.weight)[0], bits.weights
        )
    assert bias is not None
    exact = layer(inputs).mean(dim=0)
    before = (F.linear(quantized, weight, layer.bias).mean(dim=0) - exact).abs().max()
    after = (F.linear(quantized, weight, bias).mean(dim=0) - exact).abs().max()
    assert after < 1e-3
    assert before > 5 * after


@pytest.mark.parametrize(("rounding", "corrects"), [("nearest", True), ("gptq", False), ("gptq", True)])
def test_the_converted_graph_computes_what_the_simulation_does(
    rounding: RoundingName,
    corrects: bool,
    programs: Callable[[Placement], ExportedProgram],
    ranges: dict[int, Ranges],
    refine: Callable[[RoundingName, bool], Refinement],
) -> None:
    program, refinement = programs("linear"), refine(rounding, corrects)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    simulation = Simulation(program, "linear", ranges, refinement)
    widths = dict.fromkeys(simulation.num_weights, W4A4) | {"head": W8A8, QKV: W8A8}
    parameters = refinement.parameters(W4A4, widths)
    converted = convert(program, W4A4, "linear", ranges_of_layers(ranges, widths), widths, parameters)
    with torch.no_grad():
        found = converted(images)
    torch.testing.assert_close(found, simulation.predict(images, widths), atol=1e-5, rtol=1e-5)
    plain = Simulation(program, "linear", ranges).predict(images, widths)
    assert (found - plain).abs().max() > 0.01
    torch.testing.assert_close(
        simulation.predict(images, {}), Simulation(program, "linear", ranges).predict(images, {}), atol=0, rtol=0
    )


def test_a_layer_without_a_bias_is_named_and_left_alone(
    ragged: list[CalibrationBatch], caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **{**TINY, "depth": 1, "qkv_bias": False}).eval()
    observer = RangeObserver(model, "linear")
    observer.observe(ragged)
    ranges = {8: observer.ranges()}
    caplog.set_level("INFO", logger="sparse_inversion")
    program = export_images(model, "linear")
    moments = MomentObserver(model, "linear", ranges[8], ranges, products=False)
    moments.observe(ragged)
    refinement = Refinement(program, "linear", moments.moments(), rounding="nearest", bias_correction=True)
    assert f"bias correction leaves out layers without a bias of their own: 1 ({QKV})" in caplog.text
    assert refinement.bias(QKV, W8A8) is None
    assert refinement.parameters(W8A8).keys() == {
        f"model.{name}.bias" for name in ("patch_embed.proj", "blocks.0.attn.proj", "blocks.0.mlp.fc1")
    } | {"model.blocks.0.mlp.fc2.bias", "model.head.bias"}


def test_a_rounding_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rounding must be one of \['nearest', 'gptq'\], not 'up'"):
        CalibrationConfig(teacher=ModelConfig(name="x"), images="x", output="x", rounding="up")  # type: ignore[arg-type]
