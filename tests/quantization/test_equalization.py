"""Equalization: the same function with equal ranges of weights, where nothing between two layers mixes channels."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.models import ModelConfig
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.equalization import LinearPair, check_equalization, equalize, find_pairs
from pipeline.quantization.graphs import export_images
from tests.conftest import TINY, enlarge_weights, make_tiny_model, make_whole

SMALL = {**TINY, "depth": 1}
LEFT = "attentions are not equalized, because there is a normalization or a computed bias between values and projection"


def make(name: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return enlarge_weights(timm.create_model(name, **{**SMALL, **arguments})).eval()


def names(pairs: list[LinearPair]) -> list[tuple[str, str]]:
    return [(pair.first.weight, pair.second.weight) for pair in pairs]


def logits(model: nn.Module, size: int = 32) -> Tensor:
    with torch.no_grad():
        return model(torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("placement", ["linear", "matmul"])
def test_values_and_projection_get_equal_ranges_of_weights_and_logits_stay(placement: Any) -> None:
    model = make_tiny_model()
    with torch.no_grad():
        # A large channel of the values, in the last third of the fused layer.
        model.get_parameter("blocks.0.attn.qkv.weight")[2 * 32 + 5] *= 30
    pairs = find_pairs(export_images(model, placement))
    assert names(pairs) == [(f"blocks.{block}.attn.qkv.weight", f"blocks.{block}.attn.proj.weight") for block in (0, 1)]
    assert [pair.rows.tolist() for pair in pairs] == [list(range(64, 96))] * 2
    equalized = equalize(model, pairs)
    torch.testing.assert_close(logits(equalized), logits(model), rtol=1e-5, atol=1e-5)
    for pair in pairs:
        first, second = equalized.get_parameter(pair.first.weight), equalized.get_parameter(pair.second.weight)
        torch.testing.assert_close(first[64:].abs().amax(dim=1), second.abs().amax(dim=0))
        torch.testing.assert_close(first[:64], model.get_parameter(pair.first.weight)[:64], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        # Query, key and value apart; rotary positions read the type of the values.
        ("eva02_base_patch14_224", {}, [("v_proj", "proj")]),
        # Without a bias; one latent query reads the tokens, and its projection reads one token.
        ("vit_base_patch16_siglip_224", {"qkv_bias": False}, [("qkv", "proj"), ("attn_pool.kv", "attn_pool.proj")]),
        ("vit_tiny_patch16_224", {"act_layer": "relu"}, [("qkv", "proj"), ("fc1", "fc2")]),
    ],
)
def test_other_families_compute_the_same_with_what_can_be_equalized(
    name: str, arguments: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    model = make(name, arguments)
    pairs = find_pairs(export_images(model, "linear"))
    assert len(pairs) == len(found)
    for (first, second), (source, sink) in zip(names(pairs), found, strict=True):
        assert first.endswith(f"{source}.weight")
        assert second.endswith(f"{sink}.weight")
    equalized = equalize(model, pairs)
    assert (equalized.get_parameter(pairs[0].second.weight) != model.get_parameter(pairs[0].second.weight)).any()
    torch.testing.assert_close(logits(equalized), logits(model), rtol=1e-5, atol=1e-5)


def test_attention_in_windows_is_equalized_as_well() -> None:
    model = make_whole("swin_tiny_patch4_window7_224")
    pairs = find_pairs(export_images(model, "linear"))
    assert len(pairs) == 2
    torch.testing.assert_close(logits(equalize(model, pairs), 64), logits(model, 64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}),
        # The fused layer's bias is put together in the forward pass.
        ("eva02_tiny_patch14_224", {}),
    ],
)
def test_attentions_that_cannot_be_equalized_are_named_and_without_any_other_it_is_refused(
    name: str, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sparse_inversion")
    model = make(name, arguments)
    program = export_images(model, "linear")
    with pytest.raises(ModelError, match="equalization needs linear layers with nothing but an attention or a ReLU"):
        check_equalization(program)
    assert f"1 {LEFT}" in caplog.text
    assert caplog.text.rstrip().endswith(": blocks.0.attn")
    with pytest.raises(ModelError, match="equalization needs linear layers"):
        equalize(model, find_pairs(program))


class _Shared(nn.Module):
    """Something else reads the first layer's output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, values: Tensor) -> Tensor:
        between = self.first(values)
        return self.second(between.relu()) + between


def test_a_layer_whose_output_others_read_too_keeps_its_weights() -> None:
    assert find_pairs(torch.export.export(_Shared(), (torch.randn(2, 4),))) == []


def test_ranges_of_an_equalized_model_are_not_compared_with_those_of_another() -> None:
    with pytest.raises(ConfigError, match="reference: equalization changes the activations"):
        CalibrationConfig(teacher=ModelConfig(name="x"), images="x", output="x", reference="y", equalization=True)
