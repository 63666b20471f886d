"""Graphs that ship take images alone, with ranges that the subset graph observed."""

from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import pytest
import timm
import torch
from torch import nn
from torch.export import ExportedProgram

from pipeline.errors import ModelError
from pipeline.quantization import BitWidths
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.graphs import (
    activation_observers,
    convert,
    export_images,
    export_subset,
    prepare,
    reexport,
)
from pipeline.quantization.observe import RangeObserver
from tests.conftest import TINY, WHOLE_IMAGES, enlarge_weights, make_whole
from tests.quantized import read_ranges


def observed(model: nn.Module, placement: Placement, batches: list[CalibrationBatch]) -> dict[str, tuple[float, float]]:
    observer = RangeObserver(model, placement)
    observer.observe(batches)
    return observer.ranges()


@pytest.mark.parametrize("placement", get_args(Placement))
def test_fewer_bits_are_farther_from_float(
    placement: Placement,
    model: nn.Module,
    programs: Callable[[Placement], ExportedProgram],
    ragged: list[CalibrationBatch],
) -> None:
    images = ragged[1].images
    ranges = observed(model, placement, ragged)
    errors = []
    with torch.no_grad():
        expected = model(images)
        for bits in (8, 6, 4):
            setting = BitWidths(weights=bits, activations=bits)
            quantized = convert(programs(placement), setting, placement, ranges)(images)
            errors.append(((quantized - expected).norm() / expected.norm()).item())
    # Each bit less doubles the rounding.
    assert 1e-3 < errors[0] < 0.1
    assert all(2 < wider / narrower < 8 for narrower, wider in pairwise(errors)), errors


def test_the_shipped_graph_equals_the_converted_subset_graph(
    model: nn.Module, programs: Callable[[Placement], ExportedProgram], ragged: list[CalibrationBatch]
) -> None:
    bits, images = BitWidths(weights=4, activations=8), ragged[1].images
    subset = export_subset(model, "linear")
    prepared = prepare(subset, bits, "linear")
    with torch.no_grad():
        for batch in ragged:
            prepared(batch.images, batch.keep_indices)
        ranges = read_ranges(prepared)
        everything = torch.arange(16).repeat(len(images), 1)
        expected = convert(subset, bits, "linear", ranges)(images, everything)
        result = convert(programs("linear"), bits, "linear", ranges)(images)
    assert torch.equal(result, expected)


def test_two_calibrations_give_equal_scales(model: nn.Module, ragged: list[CalibrationBatch]) -> None:
    assert observed(model, "matmul", ragged) == observed(model, "matmul", ragged)


def test_float_weights_are_left_behind(
    model: nn.Module, programs: Callable[[Placement], ExportedProgram], ragged: list[CalibrationBatch]
) -> None:
    program = programs("linear")
    shipped = reexport(convert(program, BitWidths(), "linear", observed(model, "linear", ragged)), program)
    names = shipped.state_dict.keys()
    assert "model.blocks.0.attn.qkv.weight" not in names
    assert "model.blocks.0.attn.qkv.bias" in names
    assert sum(value.dtype == torch.int8 for value in shipped.state_dict.values()) == 10


def test_ranges_of_another_model_are_refused(programs: Callable[[Placement], ExportedProgram]) -> None:
    with pytest.raises(ModelError, match="11 observers differ, such as"):
        convert(programs("linear"), BitWidths(), "linear", {"elsewhere:input": (0.0, 1.0)})


@pytest.mark.parametrize(
    ("name", "num_prefix_tokens"),
    [
        ("deit_tiny_distilled_patch16_224", 2),
        ("deit3_small_patch16_224", 1),
        ("vit_small_patch14_reg4_dinov2", 5),
        ("eva02_tiny_patch14_224", 1),
        ("vit_base_patch16_siglip_224", 0),
        ("vit_base_patch16_gap_224", 0),
        ("vit_small_patch16_dinov3", 5),
        ("vit_small_patch16_rope_mixed_224", 1),
        ("vit_base_patch16_rope_reg1_gap_256", 1),
    ],
)
def test_other_families_have_the_same_observers_in_both_graphs(name: str, num_prefix_tokens: int) -> None:
    torch.manual_seed(0)
    model = enlarge_weights(timm.create_model(name, **{**TINY, "depth": 1})).eval()  # type: ignore[arg-type]
    assert model.num_prefix_tokens == num_prefix_tokens
    plain, subset = export_images(model, "published"), export_subset(model, "published")
    prepared = prepare(subset, BitWidths(), "published")
    assert list(activation_observers(prepared)) == list(activation_observers(prepare(plain, BitWidths(), "published")))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for batch, kept in ((3, 5), (1, 1), (3, 16)):
            prepared(images[:batch], torch.arange(kept).repeat(batch, 1))
        expected = model(images)
        result = convert(plain, BitWidths(), "published", read_ranges(prepared))(images)
    assert ((result - expected).norm() / expected.norm()).item() < 0.15


def test_a_family_without_tokens_to_drop_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be run on a token subset"):
        export_subset(timm.create_model("resnet18", num_classes=2), "linear")


@pytest.mark.parametrize("name", WHOLE_IMAGES)
def test_it_is_exported_to_read_whole_images(name: str) -> None:
    model = make_whole(name)
    images, program = torch.randn(3, 3, 64, 64), export_images(model, "linear")
    observer = RangeObserver(model, "linear")
    # The patches of another grid than its own do not matter: stopped ones are filled already.
    assert observer.observe([CalibrationBatch(images, torch.zeros(3, 1, dtype=torch.int64), ["a", "b", "c"])]) == [
        "a",
        "b",
        "c",
    ]
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(program.module()(images), expected, atol=1e-5, rtol=1e-4)
        quantized = convert(program, BitWidths(), "linear", observer.ranges())(images)
    assert ((quantized - expected).norm() / expected.norm()).item() < 0.1


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "hiera_tiny_224", "vit_relpos_small_patch16_224"])
def test_a_program_that_reads_whole_images_has_an_onnx_form(name: str) -> None:
    images, program = torch.randn(2, 3, 64, 64), export_images(make_whole(name), "linear")
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    with torch.no_grad():
        torch.testing.assert_close(exported(images)[0], program.module()(images), atol=1e-4, rtol=1e-3)
