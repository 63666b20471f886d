"""Bit widths and settings that a user can ask for."""

from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import ModelConfig
from pipeline.quantization import BitWidths, CalibrationConfig
from pipeline.quantization.artifact_files import _int4_note, _save_options
from pipeline.quantization.mixed import Mixture
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.variants import Variant

W4A8 = BitWidths(weights=4)


def make_config(**changes: Any) -> CalibrationConfig:
    return CalibrationConfig(teacher=ModelConfig(name="x"), images="i", output="o", **changes)


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
        ({"latency_batch_size": [1, 2**31]}, "latency_batch_size must lie in "),
        ({"labeled_split": "test"}, "labeled_split is 'test', and labeled is not set"),
        (
            {"onnx_weights": "int8", "formats": ["pt2"]},
            r"onnx_weights: int8 is for ONNX files, and formats is \['pt2'\]",
        ),
        ({"onnx_int4": True, "settings": [W4A8], "formats": ["pt2"]}, "onnx_int4: true is for ONNX files"),
        ({"onnx_int4": True}, "settings has w8a8: add one such as w4a8, or leave onnx_int4 out"),
        ({"onnx_int4": True, "settings": [BitWidths(weights=4, activations=16)]}, "settings has w4a16: add"),
        ({"onnx_int4": True, "mixed": MixedConfig(weight_bits=5)}, "settings has w8a8, and mixed.high w8a8: add"),
        ({"formats": []}, "formats must be one or more of pt2 and onnx"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


@pytest.mark.parametrize(
    ("weights", "activations", "stored", "packed"),
    [(8, 8, "uint8", "uint8"), (5, 8, "int8", "int8"), (4, 8, "int8", "int4"), (4, 16, "int16", "int16")],
)
def test_weights_are_packed_in_four_bits_where_that_is_asked_for_and_they_fit(
    weights: int, activations: int, stored: str, packed: str
) -> None:
    variant = Variant("w", BitWidths(weights=weights, activations=activations))
    for onnx_int4, expected in ((False, stored), (True, packed)):
        settings = list(dict.fromkeys((variant.bits, W4A8)))
        config = make_config(settings=settings, onnx_int4=onnx_int4)
        assert _save_options(config, "onnx", variant) == {"weights": expected}
        assert _save_options(config, "aoti", variant) == {}


def test_a_mixture_that_is_not_packed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(settings=[W4A8], onnx_int4=True, mixed=MixedConfig(weight_bits=5))
    full = BitWidths()
    mixed = Variant("mixed", full, Mixture({"a": W4A8, "b": full}, 6.0, 0.0))
    stored = _save_options(config, "onnx", mixed)["weights"]
    note = _int4_note(config, mixed, "mixed.onnx", stored)
    assert note is not None
    assert note.startswith("not packed, as some layers have more than 4 bits per weight")
    assert f"mixed.onnx: onnx_int4: {note}" in capsys.readouterr().err
    # Nobody expects it of these.
    assert _int4_note(config, Variant("w8a8", full), "w8a8.onnx", "uint8") is None
    assert _int4_note(make_config(), mixed, "mixed.onnx", stored) is None


def test_a_mixture_of_few_bits_alone_is_packed() -> None:
    narrow = MixedConfig(low=BitWidths(weights=2), high=W4A8, weight_bits=3)
    config = make_config(onnx_int4=True, mixed=narrow)
    mixed = Variant("mixed", W4A8, Mixture({"a": narrow.low, "b": W4A8}, 3.0, 0.0))
    assert _save_options(config, "onnx", mixed) == {"weights": "int4"}
