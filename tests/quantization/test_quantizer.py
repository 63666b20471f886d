"""Where the three placements observe."""

from collections.abc import Callable

import pytest
import torch
from torch.export import ExportedProgram

from pipeline.errors import ModelError
from pipeline.quantization import BitWidths
from pipeline.quantization.graphs import activation_observers, prepare
from pipeline.quantization.quantizer import MinMaxQuantizer, activation_spec, weight_spec
from pipeline.quantization.settings import Placement

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
