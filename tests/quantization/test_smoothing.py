"""Smoothing: the same function with channels of more equal size, whatever the number of workers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks.outliers import FACTORS, plant_outliers
from pipeline.errors import ConfigError, DatasetError, ModelError
from pipeline.models import ModelConfig
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths, SmoothingName
from pipeline.quantization.channels import (
    ChannelObserver,
    ChannelRanges,
    find_norm_readers,
    merge_channels,
    report_other_norms,
)
from pipeline.quantization.graphs import convert, export_images
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.smoothing import repq, smooth, smooth_quant
from tests.conftest import TINY, make_tiny_model

NARROW = BitWidths(weights=4, activations=4)
SMALL = {"img_size": 32, "patch_size": 8, "num_classes": 10}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_tiny_model().eval()


def batches(count: int = 6, *, size: int = 2) -> list[CalibrationBatch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    keep = torch.rand(count, 16, generator=generator).argsort(dim=1)[:, :9].sort(dim=1).values
    ids = [f"{number}" for number in range(count)]
    return [
        CalibrationBatch(images[start : start + size], keep[start : start + size], ids[start : start + size])
        for start in range(0, count, size)
    ]


def observe(model: nn.Module, read: Sequence[CalibrationBatch]) -> ChannelRanges:
    observer = ChannelObserver(model, "linear")
    assert observer.observe(read) == [image_id for batch in read for image_id in batch.image_ids]
    return observer.ranges()


def smoothed(model: nn.Module, name: SmoothingName, **settings: float) -> nn.Module:
    readers = find_norm_readers(export_images(model, "linear").module().graph)
    return smooth(model, readers, observe(model, batches()), name, **settings)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch.images) for batch in batches()])


def error(model: nn.Module, quantized: nn.Module) -> float:
    """Relative error of the logits of a model that is quantized to 4 bits."""
    observer = RangeObserver(quantized, "linear")
    observer.observe(batches())
    graph = convert(export_images(quantized, "linear"), NARROW, "linear", observer.ranges())
    exact = logits(model)
    return float((logits(graph) - exact).norm() / exact.norm())


def test_every_normalization_of_a_vit_is_found_with_what_reads_it(model: nn.Module) -> None:
    found = find_norm_readers(export_images(model, "linear").module().graph)
    names = [(pair.norm.weight, *(linear.weight for linear in pair.linears)) for pair in found]
    blocks = [
        pair
        for block in range(TINY["depth"])
        for pair in (
            (f"blocks.{block}.norm1.weight", f"blocks.{block}.attn.qkv.weight"),
            (f"blocks.{block}.norm2.weight", f"blocks.{block}.mlp.fc1.weight"),
        )
    ]
    assert names == [*blocks, ("norm.weight", "head.weight")]
    assert found[0].norm.bias == "blocks.0.norm1.bias"
    assert found[0].linears[0].bias == "blocks.0.attn.qkv.bias"


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        # Query, key and value in one layer, whose bias is computed; two layers in a gated MLP.
        ("eva02_tiny_patch14_224", {"depth": 1, "embed_dim": 32, "num_heads": 2}, 3),
        # Query, key and value apart; a normalization within the MLP.
        ("eva02_base_patch14_224", {"depth": 1, "embed_dim": 32, "num_heads": 2}, 4),
        # The mean of the patches goes through a normalization of its own.
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 32, "num_heads": 2, "global_pool": "avg"}, 3),
        # RMSNorm has no bias, which could take a shift up.
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 32, "num_heads": 2, "norm_layer": "rmsnorm"}, 3),
    ],
)
@pytest.mark.parametrize("smoothing", ["smooth_quant", "repq"])
def test_the_function_stays_the_same_in_other_families(
    name: str, arguments: dict[str, Any], count: int, smoothing: SmoothingName
) -> None:
    torch.manual_seed(0)
    other = timm.create_model(name, **SMALL, **arguments).eval()
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert len(find_norm_readers(export_images(other, "linear").module().graph)) == count
    torch.testing.assert_close(logits(smoothed(other, smoothing)), logits(other), rtol=1e-3, atol=1e-3)


def test_normalizations_that_are_left_out_are_told(model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    report_other_norms(export_images(model, "linear").module().graph)
    assert capsys.readouterr().err == ""
    # Query and key are normalized for their product alone.
    sizes: dict[str, Any] = {**SMALL, "depth": 1, "embed_dim": 32, "num_heads": 2}
    other = timm.create_model("vit_tiny_patch16_224", **sizes, qk_norm=True)
    report_other_norms(export_images(other.eval(), "linear").module().graph)
    named = "'blocks.0.attn.q_norm.weight', 'blocks.0.attn.k_norm.weight'"
    assert f"note: 2 normalizations are not smoothed, because not only linear layers read their output: {named}" in (
        capsys.readouterr().err
    )


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="smoothing repq needs a normalization whose output only linear layers read"):
        smooth(nn.Identity(), [], {}, "repq")


def test_smooth_quant_divides_a_channel_between_values_and_weights() -> None:
    low, high = torch.tensor([-8.0, -1.0, 0.0, -1.0]), torch.tensor([2.0, 4.0, 0.0, 1.0])
    weights = [torch.tensor([[0.5, -1.0, 1.0, 0.0]]), torch.tensor([[-2.0, 0.1, 1.0, 0.0]])]
    change = smooth_quant(low, high, weights, 0.5)
    assert change.scale.tolist() == [2.0, 2.0, 1.0, 1.0]
    assert smooth_quant(low, high, weights, 1.0).scale.tolist() == [8.0, 4.0, 1.0, 1.0]
    assert not change.shift.any()


def test_repq_gives_every_channel_the_same_range() -> None:
    low, high = torch.tensor([-8.0, 1.0, 5.0]), torch.tensor([2.0, 5.0, 5.0])
    change = repq(low, high)
    new_low, new_high = ((bound - change.shift) / change.scale for bound in (low, high))
    torch.testing.assert_close(new_low[:2], new_low[:1].expand(2))
    torch.testing.assert_close((new_high - new_low)[:2], torch.full((2,), 7.0, dtype=torch.float64))
    # Constant, so there is nothing to represent.
    assert new_low[2] == new_high[2] == 5.0


def test_any_number_of_workers_sees_the_same_channels(model: nn.Module) -> None:
    read = batches()
    whole = observe(model, read)
    for bounds in ((1, 3), (2, 3), (3, 3)):
        shares = [read[: bounds[0]], read[bounds[0] : bounds[1]]]
        merged = merge_channels([observe(model, share) for share in shares])
        assert merged.keys() == whole.keys()
        assert all(np.array_equal(a, b) for name in whole for a, b in zip(merged[name], whole[name], strict=True))


def test_channels_that_are_not_finite_are_refused() -> None:
    bad = {"norm.weight": (np.array([0.0, np.nan]), np.ones(2))}
    with pytest.raises(DatasetError, match=r"activations after 'norm\.weight' are not finite"):
        merge_channels([bad, {"norm.weight": (np.zeros(2), np.ones(2))}])


def test_planted_outliers_change_no_answer_and_ruin_four_bits_until_they_are_smoothed(model: nn.Module) -> None:
    planted = plant_outliers(model)
    torch.testing.assert_close(logits(planted), logits(model), rtol=1e-4, atol=1e-5)
    ratio = planted.get_parameter("norm.weight") / model.get_parameter("norm.weight")
    assert sorted(ratio.round().tolist())[-4:] == [1.0, *sorted(FACTORS)]
    plain, ruined = error(model, model), error(model, planted)
    assert ruined > 2 * plain
    for name in ("smooth_quant", "repq"):
        assert error(model, smoothed(planted, name)) < 1.3 * plain


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_undoes_planted_outliers_whatever_alpha(model: nn.Module, alpha: float) -> None:
    ours = smoothed(plant_outliers(model), "smooth_quant", alpha=alpha).state_dict()
    for name, values in smoothed(model, "smooth_quant", alpha=alpha).state_dict().items():
        torch.testing.assert_close(ours[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothing": "rough"}, r"smoothing must be one of \['none', 'smooth_quant', 'repq'\], not 'rough'"),
        ({"smoothing_alpha": 0.5}, r"smoothing_alpha is 0\.5, and smoothing none has no use for it"),
        ({"smoothing": "smooth_quant", "smoothing_alpha": 1.5}, r"smoothing_alpha must lie in \[0, 1\], not 1\.5"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CalibrationConfig(teacher=ModelConfig(name="x"), images="x", output="x", **settings)
