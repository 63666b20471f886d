"""Bit widths by layer: the most sensitive first, within a budget or until the drop is small enough."""

from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.mixed import Mixture, choose_widths
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.sensitivity import Sensitivity
from pipeline.quantization.variants import Variant

# Divergence per weight: b, then d, a and c.
ROWS = [Sensitivity("a", 100, 0.1, 0.0), Sensitivity("b", 100, 0.4, 0.0), Sensitivity("c", 700, 0.2, 0.0)]
ROWS += [Sensitivity("d", 100, 0.3, 0.0)]


def disagrees(widths: Mapping[str, BitWidths]) -> float:
    """Ten percent for each layer with the low widths."""
    return 10.0 * sum(bits.weights == 4 for bits in widths.values())


def high_layers(**budget: float) -> tuple[str, float, float, bool]:
    chosen = choose_widths(MixedConfig(**budget), ROWS, disagrees)  # type: ignore[arg-type]
    assert list(chosen.layers) == ["a", "b", "c", "d"]
    names = "".join(layer for layer, bits in chosen.layers.items() if bits.weights == 8)
    return names, chosen.weight_bits, chosen.disagreement, chosen.met


@pytest.mark.parametrize(
    ("budget", "layers", "average"),
    [(4.0, "", 4.0), (4.4, "b", 4.4), (4.8, "bd", 4.8), (5.2, "abd", 5.2), (7.9, "abd", 5.2), (8.0, "abcd", 8.0)],
)
def test_the_budget_goes_to_the_layers_that_suffer_most_per_weight(budget: float, layers: str, average: float) -> None:
    assert high_layers(weight_bits=budget) == (layers, pytest.approx(average), 40 - 10 * len(layers), True)


@pytest.mark.parametrize(("drop", "layers"), [(100, ""), (40, ""), (39, "b"), (20, "bd"), (10, "abd"), (0, "abcd")])
def test_layers_are_raised_until_the_drop_is_small_enough(drop: float, layers: str) -> None:
    names, _, found, met = high_layers(max_drop=drop)
    assert (names, found, met) == (layers, 40 - 10 * len(layers), True)


def test_a_drop_that_cannot_be_met_is_told() -> None:
    chosen = choose_widths(MixedConfig(max_drop=5), ROWS, lambda widths: 7.0)
    assert (chosen.met, chosen.weight_bits, chosen.disagreement) == (False, 8, 7)


def test_a_mixture_saturates_where_one_of_its_layers_does() -> None:
    """Its largest widths do not, of 12 bits, but those of a layer with 8 do."""
    full, wide, narrow = BitWidths(), BitWidths(weights=12), BitWidths(weights=4)
    assert Variant("mixed", wide, Mixture({"a": full, "b": wide}, 10.0, 0.0)).can_saturate
    assert not Variant("mixed", wide, Mixture({"a": narrow, "b": wide}, 10.0, 0.0)).can_saturate
    assert Variant("w8a8", full).can_saturate
    assert not Variant("w4a8", narrow).can_saturate


def test_what_has_no_weights_costs_no_bits() -> None:
    rows = [*ROWS, Sensitivity("attn", 0, 1e-9, 0.0)]
    chosen = choose_widths(MixedConfig(weight_bits=4), rows, disagrees)
    assert chosen.layers["attn"] == BitWidths()
    assert chosen.weight_bits == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "mixed needs either weight_bits or max_drop"),
        ({"weight_bits": 5, "max_drop": 1}, "mixed needs either weight_bits or max_drop"),
        ({"weight_bits": 9}, r"mixed.weight_bits must lie in \[4, 8\], not 9"),
        ({"max_drop": 1, "held_back": 0}, "mixed.held_back must be at least 1, not 0"),
        (
            {"max_drop": 1, "low": BitWidths()},
            "mixed.low must have fewer bits per weight than mixed.high, and no more per activation: w8a8, w8a8",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixedConfig(**settings)
