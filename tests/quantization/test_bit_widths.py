"""Bit widths and settings that a user can ask for."""

from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import ModelConfig
from pipeline.quantization import BitWidths, CalibrationConfig
from pipeline.quantization.artifact_files import _save_options
from pipeline.quantization.variants import Variant


def test_bit_widths_are_named() -> None:
    assert BitWidths(weights=4, activations=8).label == "w4a8"


@pytest.mark.parametrize("bits", [-8, 0, 1, 17])
def test_impossible_bit_widths_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"weights must have 2 to 16 bits, not {bits}"):
        BitWidths(weights=bits)
    with pytest.raises(ConfigError, match=f"activations must have 2 to 16 bits, not {bits}"):
        BitWidths(activations=bits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement": "everywhere"}, "placement must be one of .* not 'everywhere'"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"seed": -1}, "seed must not be negative, not -1"),
        ({"max_images": 0}, "max_images must be at least 1, not 0"),
        ({"settings": []}, "settings must be one or more different bit widths"),
        ({"settings": [BitWidths(), BitWidths()]}, "settings must be one or more different bit widths"),
        ({"formats": []}, "formats must be one or more of pt2 and onnx"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CalibrationConfig(teacher=ModelConfig(name="x"), images="i", output="o", **changes)


@pytest.mark.parametrize(
    ("weights", "activations", "stored", "packed"),
    [(8, 8, "uint8", "uint8"), (5, 8, "int8", "int8"), (4, 8, "int8", "int4"), (4, 16, "int16", "int16")],
)
def test_weights_are_packed_in_four_bits_where_that_is_asked_for_and_they_fit(
    weights: int, activations: int, stored: str, packed: str
) -> None:
    variant = Variant("w", BitWidths(weights=weights, activations=activations))
    for onnx_int4, expected in ((False, stored), (True, packed)):
        config = CalibrationConfig(teacher=ModelConfig(name="x"), images="x", output="x", onnx_int4=onnx_int4)
        assert _save_options(config, "onnx", variant) == {"weights": expected}
        assert _save_options(config, "aoti", variant) == {}
