"""NVIDIA's ModelOpt and Intel's NNCF find the same scales, smoothing factors, biases and rounded weights.

Their defaults differ from ours in a few definitions; each is converted where it is compared, with the reason.
"""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from benchmarks.outliers import plant_outliers
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.channels import ChannelObserver
from pipeline.quantization.graphs import Exportable, convert, export_images, observer_nodes, prepare
from pipeline.quantization.moments import MomentObserver, Moments
from pipeline.quantization.names import layer_of, module_path
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.prepared import tensor_of
from pipeline.quantization.quantizer import MinMaxQuantizer
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.refinement import Refinement
from pipeline.quantization.rounding import round_gptq, round_nearest
from pipeline.quantization.smoothing import smooth, smooth_quant
from tests.conftest import make_tiny_model

# Both libraries use parts of torch and transformers of other versions than they were made for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:transformers .* is not tested:UserWarning"),
]

BITS = BitWidths()
# Of SmoothQuant; not a half, so that activations and weights cannot be taken for each other.
ALPHA = 0.75
REASON = "needs the extra `cross-checks`"
_decomposed: Any = torch.ops.quantized_decomposed
_QUANTIZE = _decomposed.quantize_per_tensor.default
_DEQUANTIZE = _decomposed.dequantize_per_tensor.default
_DEQUANTIZE_WEIGHT = _decomposed.dequantize_per_channel.default
_LINEAR: Any = torch.ops.aten.linear.default
_CONVOLUTION = "patch_embed.proj"

Calibrated = Callable[..., tuple[Ranges, ExportedProgram]]


# Imported by the tests that need them, and not when tests are collected: ModelOpt takes seconds.
@pytest.fixture(scope="module")
def mtq() -> Any:
    return pytest.importorskip("modelopt.torch.quantization", reason=REASON)


@pytest.fixture(scope="module")
def nncf() -> SimpleNamespace:
    """The modules of NNCF that are used."""
    loggers = logging.getLoggerClass()
    whole = pytest.importorskip("nncf", reason=REASON)
    # It makes all loggers of the process that are new its own.
    logging.setLoggerClass(loggers)
    whole.set_log_level(logging.ERROR)
    import nncf.experimental.torch.fx as graphs
    from nncf.quantization import advanced_parameters, range_estimator

    return SimpleNamespace(
        quantize=graphs.quantize_pt2e,
        dataset=whole.Dataset,
        min_max=range_estimator.RangeEstimatorParametersSet.MINMAX,
        smoothing=advanced_parameters.AdvancedSmoothQuantParameters,
        biases=advanced_parameters.AdvancedBiasCorrectionParameters,
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """The tiny model with biases, without which there would be no relative change of them."""
    made = make_tiny_model()
    for name, parameter in made.named_parameters():
        if name.endswith(".bias"):
            nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="module")
def planted(model: nn.Module) -> nn.Module:
    return plant_outliers(model)


@pytest.fixture(scope="module")
def dense() -> list[CalibrationBatch]:
    """Images that keep all of their patches."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    keep = torch.arange(16).repeat(4, 1)
    return [CalibrationBatch(images[start : start + 4], keep, list("abcdefgh")[start : start + 4]) for start in (0, 4)]


@pytest.fixture(scope="module")
def calibrated(model: nn.Module, dense: list[CalibrationBatch], ragged: list[CalibrationBatch]) -> Calibrated:
    """Our ranges for a placement on whole images, or on patches of others, and the graph that they are for."""
    program = cache(lambda placement: export_images(model, placement))

    @cache
    def calibrate(placement: Placement, *, sparse: bool = False) -> tuple[Ranges, ExportedProgram]:
        observer = RangeObserver(model, placement)
        observer.observe(ragged if sparse else dense)
        return observer.ranges(), program(placement)

    return calibrate


@pytest.fixture(scope="module")
def moments(model: nn.Module, dense: list[CalibrationBatch], calibrated: Calibrated) -> dict[str, Moments]:
    """Sums of what entered the layers, by point; activations have 16 bits, so that they are as good as float."""
    ranges, _ = calibrated("linear")
    observer = MomentObserver(model, "linear", ranges, {16: ranges}, products=True)
    observer.observe(dense)
    return observer.moments()


@pytest.fixture(scope="module")
def channels(planted: nn.Module, dense: list[CalibrationBatch]) -> ChannelObserver:
    observer = ChannelObserver(planted, "linear")
    observer.observe(dense)
    return observer


class Scales(NamedTuple):
    """Scales that a converted graph is quantized with.

    Attributes:
        weights: scales [out] by layer.
        rounded: values of the quantized weights by layer.
        activations: scale and zero point by the name of the node that is quantized.
    """

    weights: dict[str, Tensor]
    rounded: dict[str, Tensor]
    activations: dict[str, tuple[float, int]]


def read_scales(graph: fx.GraphModule) -> Scales:
    found = Scales({}, {}, {})
    for node in graph.graph.nodes:
        if node.target is _DEQUANTIZE_WEIGHT:
            levels, scales, zeros = (tensor_of(graph, str(argument.target)) for argument in node.args[:3])
            layer, column = module_path(next(iter(node.users))), (-1, *[1] * (levels.ndim - 1))
            found.weights[layer] = scales.flatten()
            found.rounded[layer] = (levels.int() - zeros.view(column)) * scales.view(column)
        elif node.target is _QUANTIZE:
            source, scale, zero_point = node.args[:3]
            assert found.activations.setdefault(source.name, (scale, zero_point)) == (scale, zero_point)
    return found


def reader_of(batches: Sequence[CalibrationBatch]) -> Callable[[nn.Module], None]:
    """Return what lets a model see the images."""

    def read(model: nn.Module) -> None:
        for batch in batches:
            if isinstance(model, Exportable):
                kept = torch.zeros(len(batch.images), 16).scatter_(1, batch.keep_indices, 1.0)
                pixels = kept.view(-1, 1, 4, 4).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
                # Zeros leave the largest absolute value as it is.
                model(batch.images * pixels, batch.keep_indices)
            else:
                model(batch.images)

    return read


def quantize_by_nncf(
    nncf: SimpleNamespace,
    program: ExportedProgram,
    batches: Sequence[CalibrationBatch],
    placement: Placement = "linear",
    *,
    bias_correction: bool = False,
    smoothing: bool = False,
) -> fx.GraphModule:
    """Let NNCF calibrate the graph at the points that our quantizer marks."""
    return nncf.quantize(
        copy.deepcopy(program).module(),
        MinMaxQuantizer(BITS, placement),
        nncf.dataset([batch.images for batch in batches]),
        subset_size=len(batches),
        activations_range_estimator_params=nncf.min_max,
        weights_range_estimator_params=nncf.min_max,
        # Of all values; otherwise it takes the mean of each image's extremes.
        batchwise_statistics=False,
        fast_bias_correction=True if bias_correction else None,
        # Biases that change much are corrected too.
        bias_correction_params=nncf.biases(threshold=math.inf),
        smooth_quant=smoothing,
        smooth_quant_params=nncf.smoothing(matmul=ALPHA),
    )


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_modelopt_finds_the_same_ranges_and_scales(
    mtq: Any,
    model: nn.Module,
    dense: list[CalibrationBatch],
    ragged: list[CalibrationBatch],
    calibrated: Calibrated,
    sparse: bool,
) -> None:
    peer = Exportable(model) if sparse else copy.deepcopy(model)
    theirs = mtq.quantize(peer, mtq.INT8_DEFAULT_CFG, reader_of(ragged if sparse else dense))
    layers = theirs.model if sparse else theirs
    quantized = {name for name, part in layers.named_modules() if getattr(part, "weight_quantizer", None) is not None}

    ranges, program = calibrated("linear", sparse=sparse)
    assert quantized == {layer_of(point) for point in ranges}
    for point, (low, high) in ranges.items():
        # Theirs is symmetric: it keeps the largest absolute value alone.
        largest = layers.get_submodule(layer_of(point)).input_quantizer.amax.item()
        torch.testing.assert_close(largest, max(-low, high), rtol=1e-6, atol=0)
    for bits in (BITS, BitWidths(weights=4)):
        scales = read_scales(convert(program, bits, "linear", ranges)).weights
        assert scales.keys() == quantized
        for name, scale in scales.items():
            # They keep the largest absolute value, whatever the width; for us it is half of all steps from zero.
            largest = layers.get_submodule(name).weight_quantizer.amax.flatten()
            torch.testing.assert_close(scale * (2**bits.weights - 1) / 2, largest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("placement", get_args(Placement))
def test_nncf_finds_the_same_scales_and_zero_points(
    nncf: SimpleNamespace, dense: list[CalibrationBatch], calibrated: Calibrated, placement: Placement
) -> None:
    ranges, program = calibrated(placement)
    ours = read_scales(convert(program, BITS, placement, ranges))
    theirs = read_scales(quantize_by_nncf(nncf, program, dense, placement))

    assert theirs.weights.keys() == ours.weights.keys()
    for layer, scale in ours.weights.items():
        # 255 steps reach from the smallest to the largest of ±|w| for us. 127 steps reach to the largest for NNCF, and
        # 63 for a convolution, so that the sum of two products fits into 16 bits on older CPUs.
        steps = 63 if layer == _CONVOLUTION else 127
        torch.testing.assert_close(theirs.weights[layer] * steps, scale * 127.5, rtol=1e-6, atol=0)

    points = observed_at(program, placement)
    assert theirs.activations.keys() == ours.activations.keys() == points.keys()
    for node, (scale, zero_point) in ours.activations.items():
        low, high = ranges[points[node]]
        low, high = min(low, 0.0), max(high, 0.0)
        # Both have a level at zero. For that, we clip one end of the range by half a step at most, and NNCF widens the
        # other.
        widened = max(-low / zero_point if zero_point else 0.0, high / (255 - zero_point) if zero_point < 255 else 0.0)
        torch.testing.assert_close(scale, (high - low) / 255, rtol=1e-6, atol=0)
        torch.testing.assert_close(theirs.activations[node][0], widened, rtol=1e-5, atol=0)
        assert theirs.activations[node][1] == zero_point


def observed_at(program: ExportedProgram, placement: Placement) -> dict[str, str]:
    """Return the name of each point by that of the node whose output is observed there."""
    prepared = prepare(program, BITS, placement)
    return {source.name: seen.point for _, source, seen in observer_nodes(prepared) if hasattr(seen, "point")}


def test_modelopt_smooths_by_the_same_factors(
    mtq: Any, planted: nn.Module, dense: list[CalibrationBatch], channels: ChannelObserver
) -> None:
    settings = {**mtq.INT8_SMOOTHQUANT_CFG, "algorithm": {"method": "smoothquant", "alpha": ALPHA}}
    theirs = mtq.quantize(copy.deepcopy(planted), settings, reader_of(dense))
    smoothed = smooth(planted, channels.readers, channels.ranges(), "smooth_quant", ALPHA)
    observer = RangeObserver(smoothed, "linear")
    observer.observe(dense)
    ranges = observer.ranges()
    factors = our_factors(planted, channels)
    assert len(factors) == 5
    for name, expected in factors.items():
        layer = theirs.get_submodule(name)
        # They divide what enters a linear layer, each by itself; we fold the same into the normalization before it.
        torch.testing.assert_close(1 / layer.input_quantizer.pre_quant_scale, expected, rtol=1e-5, atol=0)
        low, high = ranges[f"{name}:input"]
        torch.testing.assert_close(layer.input_quantizer.amax.item(), max(-low, high), rtol=1e-5, atol=0)
        largest = smoothed.get_submodule(name).get_parameter("weight").abs().amax(dim=1)
        torch.testing.assert_close(layer.weight_quantizer.amax.flatten(), largest, rtol=1e-5, atol=0)


def test_nncf_smooths_by_the_same_factors(
    nncf: SimpleNamespace, planted: nn.Module, dense: list[CalibrationBatch], channels: ChannelObserver
) -> None:
    graph = quantize_by_nncf(nncf, export_images(planted, "linear"), dense, smoothing=True)
    theirs = {module_path(node): read_factors(graph, node) for node in graph.graph.nodes if node.target is _LINEAR}
    for name, expected in our_factors(planted, channels).items():
        # NNCF has no factor below the lowest tenth of them, nor above 100.
        clipped = expected.clamp(expected.quantile(0.1), torch.tensor(100.0))
        torch.testing.assert_close(theirs[name], clipped, rtol=1e-5, atol=0)


def our_factors(model: nn.Module, channels: ChannelObserver) -> dict[str, Tensor]:
    """Return what the input of each linear layer behind a normalization is divided by, float32 [in]."""
    factors: dict[str, Tensor] = {}
    for pair in channels.readers:
        low, high = map(torch.from_numpy, channels.ranges()[pair.norm.weight])
        weights = [model.get_parameter(linear.weight).detach() for linear in pair.linears]
        scale = smooth_quant(low, high, weights, ALPHA).scale.float()
        factors |= {linear.weight.removesuffix(".weight"): scale for linear in pair.linears}
    return factors


def read_factors(graph: fx.GraphModule, linear: fx.Node) -> Tensor:
    """Return what NNCF divides the input of a linear layer by, [in]."""
    source: Any = linear.args[0]
    while source.target in (_QUANTIZE, _DEQUANTIZE):
        source = source.args[0]
    (multipliers,) = graph.get_submodule(source.target).buffers()
    return 1 / multipliers.flatten()


def test_a_corrected_bias_gives_the_mean_output_of_the_float_model_as_in_nncf(
    nncf: SimpleNamespace,
    model: nn.Module,
    dense: list[CalibrationBatch],
    calibrated: Calibrated,
    moments: dict[str, Moments],
) -> None:
    ranges, program = calibrated("linear")
    graph = quantize_by_nncf(nncf, program, dense, bias_correction=True)
    biases = {module_path(node): node.args[2] for node in graph.graph.nodes if node.target is _LINEAR}
    theirs, ours = read_scales(graph), read_scales(convert(program, BITS, "linear", ranges))
    refinement = Refinement(program, "linear", moments, rounding="nearest", bias_correction=True)
    means = mean_inputs(model, dense)
    # Without the convolution, of whose input NNCF takes the mean of each color, and we that of each pixel of a patch.
    assert biases.keys() == means.keys() == ours.weights.keys() - {_CONVOLUTION}
    for layer, mean in means.items():
        linear = model.get_submodule(layer)
        weight, bias = linear.get_parameter("weight").detach(), linear.get_parameter("bias").detach()
        output = bias + weight @ mean
        # NNCF corrects the error of the weights alone, so activations have 16 bits here.
        corrected = refinement.bias(layer, BitWidths(weights=8, activations=16))
        their_bias = tensor_of(graph, str(biases[layer].target)).flatten()
        assert corrected is not None
        # As scales differ, so do weights and corrections, and not what they lead to.
        torch.testing.assert_close(corrected + ours.rounded[layer] @ mean, output, rtol=0, atol=5e-5)
        torch.testing.assert_close(their_bias + theirs.rounded[layer] @ mean, output, rtol=0, atol=5e-5)
        assert (bias + ours.rounded[layer] @ mean - output).abs().max() > 5e-4


def mean_inputs(model: nn.Module, batches: Sequence[CalibrationBatch]) -> dict[str, Tensor]:
    """Return the mean of what enters each linear layer [in]."""
    watched = copy.deepcopy(model)
    layers = {name: layer for name, layer in watched.named_modules() if isinstance(layer, nn.Linear)}
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def remember(rows: list[Tensor], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(inputs[0].flatten(0, -2))

    for name, layer in layers.items():
        layer.register_forward_pre_hook(partial(remember, seen[name]))
    with torch.no_grad():
        reader_of(batches)(watched)
    return {name: torch.cat(rows).double().mean(dim=0).float() for name, rows in seen.items()}


def test_modelopt_rounds_weights_alike_by_gptq(
    mtq: Any, model: nn.Module, dense: list[CalibrationBatch], moments: dict[str, Moments]
) -> None:
    weights = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "axis": 0}},
    ]
    settings = {"quant_cfg": weights, "algorithm": {"method": "gptq"}}
    theirs = mtq.quantize(copy.deepcopy(model), settings, reader_of(dense))
    # Theirs leaves convolutions as they are.
    layers = {layer_of(point): seen for point, seen in moments.items() if layer_of(point) != _CONVOLUTION}
    for name, seen in layers.items():
        layer, weight = theirs.get_submodule(name), model.get_submodule(name).get_parameter("weight").detach()
        scales = layer.weight_quantizer.amax.flatten() / 7
        assert seen.products is not None
        ours = round_gptq(weight, scales, 4, torch.from_numpy(seen.products))
        # Theirs sums products in float32, and ours in whole steps: a weight between two levels may take the other one,
        # and those after it make up for that.
        assert share_of_others(ours, layer.weight.detach(), scales) <= 0.005
        assert share_of_others(round_nearest(weight, scales, 4), layer.weight.detach(), scales) > 0.1


def share_of_others(one: Tensor, other: Tensor, scales: Tensor) -> float:
    """Return which share of two rounded weights lies on different levels."""
    return float(((one - other).abs() > scales[:, None] / 2).float().mean())
