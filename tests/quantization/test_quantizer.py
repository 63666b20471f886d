"""Points at which the three placements observe."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import EcaModule
from timm.models.convmixer import ConvMixer
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils.parametrizations import weight_norm

from pipeline.artifacts.formats import FormatName, ending_of, load_quantized, save
from pipeline.errors import ModelError
from pipeline.quantization import BitWidths
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.float_layers import find_float_layers, report_float_layers
from pipeline.quantization.graphs import activation_observers, convert, export_images, prepare, reexport
from pipeline.quantization.moments import _unfolding
from pipeline.quantization.prepared import prepared_layers
from pipeline.quantization.quantizer import MinMaxQuantizer, activation_spec, find_points, weight_spec
from tests.conftest import make_tiny_model
from tests.quantized import DATA_FORMATS, FACTS, read_ranges

LINEAR = {"attn.qkv:input", "attn.proj:input", "mlp.fc1:input", "mlp.fc2:input"}
MATMUL = LINEAR | {"attn:query", "attn:key", "attn:probability", "attn:value"}
PUBLISHED = LINEAR | {"attn.qkv:output", "attn:logits", "attn.proj:output", "mlp.fc2:output"}
ENDS = {"patch_embed.proj:input", "head:input"}


@pytest.mark.parametrize(
    ("placement", "block", "others"),
    [
        ("linear", LINEAR, ENDS),
        ("matmul", MATMUL, ENDS),
        (
            "published",
            PUBLISHED,
            ENDS
            | {"patch_embed.proj:output", "head:output", "blocks.0:input"}
            | {f"blocks.{number}:{point}" for number in (0, 1) for point in ("attention", "output")},
        ),
    ],
)
def test_placements_observe_these_points(
    placement: Placement, block: set[str], others: set[str], programs: Callable[[Placement], ExportedProgram]
) -> None:
    observers = activation_observers(prepare(programs(placement), BitWidths(), placement))
    expected = {f"blocks.{number}.{point}" for number in (0, 1) for point in block} | others
    assert set(observers) == expected


@pytest.mark.parametrize("bits", [2, 4, 6, 8, 12, 16])
def test_bit_widths_decide_the_integers(bits: int) -> None:
    weight, activation = weight_spec(bits), activation_spec(bits)
    assert (weight.quant_min, weight.quant_max) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (activation.quant_min, activation.quant_max) == (0, 2**bits - 1)
    assert weight.dtype == (torch.int8 if bits <= 8 else torch.int16)
    assert activation.dtype == (torch.uint8 if bits <= 8 else torch.uint16)


def test_a_graph_without_layers_is_refused(programs: Callable[[Placement], ExportedProgram]) -> None:
    with pytest.raises(ModelError, match="no linear layer or convolution"):
        MinMaxQuantizer(BitWidths(), "linear").validate(programs("linear").graph_module)


@pytest.mark.parametrize("placement", ["linear", "published"])
def test_a_module_that_is_called_twice_is_quantized_as_two_equal_ones(placement: Placement) -> None:
    shared, apart = make_tiny_model(), make_tiny_model()
    shared.blocks[1] = shared.blocks[0]  # type: ignore[index, operator]
    apart.blocks[1] = copy.deepcopy(apart.blocks[0])  # type: ignore[index, operator]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ranges, logits = [], []
    for model in (shared, apart):
        program = export_images(model, placement)
        prepared = prepare(program, BitWidths(), placement)
        with torch.no_grad():
            prepared(images)
            ranges.append(read_ranges(prepared))
            logits.append(convert(program, BitWidths(), placement, ranges[-1])(images))
    # In the order of the graph.
    assert list(ranges[0].values()) == list(ranges[1].values())
    assert sum(name.endswith(".attn.qkv:input#2") for name in ranges[0]) == 1
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("name", "sizes", "attention"),
    [
        # Its second block has windows that are shifted: their mask is added in another shape.
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 4, "depths": (2,), "num_heads": (2,)},
            "layers.0.blocks.1.attn",
        ),
        ("cait_xxs24_224", {"img_size": 32, "patch_size": 8, "depth": 1, "num_heads": 2}, "blocks.0.attn"),
    ],
)
def test_operands_have_their_names_whatever_stands_before_softmax(
    name: str, sizes: dict[str, Any], attention: str
) -> None:
    model = timm.create_model(name, embed_dim=24, num_classes=10, **sizes).eval()
    names = {
        placement: set(find_points(export_images(model, placement).module().graph, placement).values())
        for placement in ("matmul", "published")
    }
    own = {point for point in names["matmul"] if point.startswith(f"{attention}:")}
    assert own == {f"{attention}:{operand}" for operand in ("query", "key", "probability", "value")}
    assert f"{attention}:logits" in names["published"]


@pytest.mark.parametrize(
    ("name", "sizes", "stream"),
    [
        # As SMI and PSAQ-ViT quantize it.
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)},
            {
                "layers.0.blocks.0:input",
                *(f"layers.{n}.blocks.0:{sum}" for n in (0, 1) for sum in ("attention", "output")),
            },
        ),
        # The second block projects and pools its shortcut; the head's pool is no branch.
        (
            "hiera_tiny_224",
            {"img_size": 64, "embed_dim": 24, "num_heads": 1, "stages": (1, 1), "q_pool": 1},
            {"blocks.0:input", *(f"blocks.{n}:{of}" for n in (0, 1) for of in ("attention", "output"))},
        ),
        # Its global response normalization adds to its own input, without a layer in between.
        (
            "convnextv2_atto",
            {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
            {"stages.0.blocks.0:input", *(f"stages.{n}.blocks.0:output" for n in range(4))},
        ),
    ],
)
def test_the_residual_stream_is_found_whatever_the_family_calls_its_blocks(
    name: str, sizes: dict[str, Any], stream: set[str]
) -> None:
    graph = export_images(timm.create_model(name, num_classes=10, **sizes).eval(), "published").module().graph
    points = set(find_points(graph, "published").values())
    # All others are of layers, of attention, or of the patch embedding.
    blocks = {point for point in points if point.rpartition(":")[0].rpartition(".")[2].isdigit()}
    assert {point for point in blocks if "blocks" in point.rpartition(".")[0] or point in stream} == stream
    assert not [point for point in points if ".grn:" in point]


@pytest.mark.parametrize(
    ("name", "sizes", "first"),
    [
        ("resnet18", {"layers": (1, 1, 1, 1)}, "layer1.0.conv1"),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, "stages.0.blocks.0.conv_dw"),
    ],
)
def test_a_convolution_that_reads_the_residual_stream_itself_keeps_the_name_of_its_input(
    name: str, sizes: dict[str, Any], first: str
) -> None:
    program = export_images(timm.create_model(name, num_classes=10, **sizes).eval(), "published")
    points = find_points(program.module().graph, "published").values()
    assert set(find_points(program.module().graph, "linear").values()) <= set(points)
    observers = activation_observers(prepare(program, BitWidths(), "published"))
    assert f"{first}:input" in observers
    # The sum reads the same values: its edge is that point too.
    assert f"{first.rpartition('.')[0]}:input" in set(points) - set(observers)


def test_layers_that_read_the_same_values_share_the_width_of_the_first() -> None:
    """As query, key and value of EVA02 do where they are computed apart, and the halves of its gated MLP."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    program = export_images(timm.create_model("eva02_base_patch14_224", **sizes).eval(), "linear")
    uniform = activation_observers(prepare(program, BitWidths(), "linear"))
    narrow = {f"blocks.0.{layer}": BitWidths(activations=4) for layer in ("attn.k_proj", "attn.v_proj", "mlp.fc1_g")}
    mixed = activation_observers(prepare(program, BitWidths(activations=8), "linear", narrow))
    assert list(mixed) == list(uniform)
    widths = {point: observer.quant_max for point, observer in mixed.items()}
    assert widths["blocks.0.attn.q_proj:input"] == 255
    assert widths["blocks.0.mlp.fc1_g:input"] == 15
    assert not {"blocks.0.attn.k_proj:input", "blocks.0.mlp.fc1_x:input"} & widths.keys()
    convert(program, BitWidths(), "linear", dict.fromkeys(uniform, (-1.0, 1.0)), narrow)


def test_weights_and_activations_of_any_size_are_quantized_alike() -> None:
    plain, scaled = make_tiny_model(), make_tiny_model()
    with torch.no_grad():
        # The same function: large inputs of small weights in one layer, the other way round in the other.
        for block, factor in zip(scaled.blocks, (2.0**30, 2.0**-30), strict=True):  # type: ignore[arg-type]
            block.norm2.weight.mul_(factor)
            block.norm2.bias.mul_(factor)
            block.mlp.fc1.weight.div_(factor)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    for model in (plain, scaled):
        program = export_images(model, "linear")
        prepared = prepare(program, BitWidths(), "linear")
        with torch.no_grad():
            prepared(images)
            logits.append(convert(program, BitWidths(), "linear", read_ranges(prepared))(images))
    assert torch.equal(*logits)


def test_layers_with_computed_weights_are_said_to_stay_in_float(capsys: pytest.CaptureFixture[str]) -> None:
    report_float_layers("tiny", {})
    assert capsys.readouterr().err == ""
    report_float_layers("tiny", {"a": "x", "b": "y", "c": "x"})
    assert capsys.readouterr().err.splitlines() == [
        "note: 2 layers of 'tiny' stay in float, because x: 'a', 'c'",
        "note: 1 layer of 'tiny' stays in float, because y: 'b'",
    ]
    model = make_tiny_model()
    assert find_float_layers(model, export_images(model, "linear")) == {}
    weight_norm(model.blocks[1].mlp.fc1)  # type: ignore[index, union-attr]
    assert find_float_layers(model, export_images(model, "linear")) == {
        "blocks.1.mlp.fc1": "their weights are computed in the forward pass"
    }
    model = make_tiny_model()
    model.blocks[1] = model.blocks[0]  # type: ignore[index, operator]
    assert find_float_layers(model, export_images(model, "linear")) == {}


class Transform(nn.Module):
    """A linear transform that is no `nn.Linear`, as CSATv2 has one: its weight has another name, and is a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.randn(width, width, generator=torch.Generator().manual_seed(0)))

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(values, self.weights)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def convolutions() -> nn.Module:
    """A small ConvMixer, whose convolutions pad by word, with further ones."""
    torch.manual_seed(0)
    model: Any = ConvMixer(dim=8, depth=1, kernel_size=5, patch_size=8, num_classes=10)
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]:
        # With one behind an activation, torchao's conversion looks for trained BatchNorm, which takes a minute.
        model.set_submodule(name, nn.Identity())
    model.blocks.append(EcaModule(8))
    model.blocks.append(nn.Conv2d(8, 8, (4, 3), padding="same", dilation=(1, 2)))
    model.blocks.append(nn.ConvTranspose2d(8, 8, 3, padding=1))
    model.global_pool = nn.Sequential(model.global_pool, Transform(8))
    model.spare = nn.Linear(8, 8)
    return model.eval()


def test_convolutions_of_every_padding_and_dimension_are_quantized(convolutions: nn.Module) -> None:
    program = export_images(convolutions, "linear")
    prepared = prepare(program, BitWidths(), "linear")
    assert set(activation_observers(prepared)) == {
        f"{layer}:input"
        for layer in (
            "stem.0",
            "blocks.0.0.fn.0",
            "blocks.0.1",
            "blocks.1.conv",
            "blocks.2",
            "global_pool.1.weights",
            "head",
        )
    }
    assert find_float_layers(convolutions, program) == {
        "blocks.3": "no placement quantizes conv_transpose2d",
        "spare": "the forward pass does not read their weights",
    }
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, _ = convolutions(images), prepared(images)
        quantized = convert(program, BitWidths(), "linear", read_ranges(prepared))(images)
    assert 0 < (quantized - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("kind", DATA_FORMATS)
def test_files_compute_what_convolutions_of_every_padding_and_dimension_do(
    kind: FormatName, convolutions: nn.Module, tmp_path: Path
) -> None:
    program = export_images(convolutions, "linear")
    prepared = prepare(program, BitWidths(), "linear")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prepared(images)
    quantized = reexport(convert(program, BitWidths(), "linear", read_ranges(prepared)), program)
    path = tmp_path / f"w8a8{ending_of(kind)}"
    save(quantized, path, FACTS, **({"weights": "uint8"} if kind == "onnx" else {}))
    torch.testing.assert_close(load_quantized(path).predict(images), quantized.module()(images), rtol=1e-3, atol=1e-3)


def test_moments_see_what_lies_under_every_kernel(convolutions: nn.Module) -> None:
    """The rows that are summed, times the weight, are the output of the convolution."""
    model = copy.deepcopy(convolutions)
    graph = prepare(export_images(model, "linear"), BitWidths(), "linear")
    inputs: dict[str, Tensor] = {}
    layers = {layer.layer: layer for layer in prepared_layers(graph) if layer.groups == 1}
    modules = {name: model.get_submodule(name) for name in layers if not name.endswith("weights")}
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            inputs[name], outputs[name] = given[0], out

        return hook

    for name, module in modules.items():
        module.register_forward_hook(remember(name))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    checked = 0
    for name, module in modules.items():
        unfolding = _unfolding(layers[name])
        if unfolding is not None:
            weight: Any = module.weight
            rows = unfolding.rows(inputs[name]) @ weight.flatten(1).T
            bias = 0 if module.bias is None else module.bias
            torch.testing.assert_close(rows + bias, outputs[name].flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked == 4
