"""Points at which the three placements observe."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch.export import ExportedProgram
from torch.nn.utils.parametrizations import weight_norm

from pipeline.errors import ModelError
from pipeline.quantization import BitWidths
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.graphs import activation_observers, convert, export_images, prepare
from pipeline.quantization.quantizer import (
    MinMaxQuantizer,
    activation_spec,
    find_float_layers,
    find_points,
    report_float_layers,
    weight_spec,
)
from tests.conftest import make_tiny_model
from tests.quantized import read_ranges

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
    report_float_layers("tiny", [])
    assert capsys.readouterr().err == ""
    report_float_layers("tiny", ["a", "b", "c", "d"])
    assert "4 layers of 'tiny' stay in float" in capsys.readouterr().err
    model = make_tiny_model()
    assert find_float_layers(model, export_images(model, "linear")) == []
    weight_norm(model.blocks[1].mlp.fc1)  # type: ignore[index, union-attr]
    assert find_float_layers(model, export_images(model, "linear")) == ["blocks.1.mlp.fc1"]
    model = make_tiny_model()
    model.blocks[1] = model.blocks[0]  # type: ignore[index, operator]
    assert find_float_layers(model, export_images(model, "linear")) == []
