"""Bit widths and settings that a user can ask for."""

from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import ModelConfig
from pipeline.quantization import BitWidths, CalibrationConfig


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
