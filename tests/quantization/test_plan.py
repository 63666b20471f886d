"""Checks of a calibration, and the choice of its images, before a cluster is joined."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.distillation import AugmentConfig
from pipeline.errors import ConfigError, DatasetError
from pipeline.models import ModelConfig, save_model
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.plan import _hold_back, _probe, _warn_of_few, check_settings
from pipeline.quantization.qat_config import QatConfig
from pipeline.workers import WorkersConfig
from tests.conftest import make_tiny_model


def make_config(teacher: str = "x", output: str = "o", **changes: Any) -> CalibrationConfig:
    own = {"teacher": ModelConfig(name=teacher), "images": "i", "output": output, "workers": WorkersConfig(size=0)}
    return CalibrationConfig(**(own | changes))


def index(count: int) -> list[tuple[str, int]]:
    return [(f"image-{number:03d}", 3) for number in range(count)]


def test_a_quarter_of_the_images_is_held_back_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(mixed=MixedConfig(weight_bits=6), qat=QatConfig())
    for setting, draw in (("mixed.held_back", _probe), ("qat.held_back", _hold_back)):
        for count, held_back in ((256, 64), (1000, 64), (65, 16), (4, 1)):
            window = draw(config, index(count))
            assert window is not None
            assert len(window.rows) == held_back
            told = f"warning: {setting} is 64: of {count} images a quarter is held back, {held_back}\n"
            assert capsys.readouterr().err == ("" if held_back == 64 else told)


def test_widths_by_layer_need_images_to_hold_back() -> None:
    config = make_config(mixed=MixedConfig(weight_bits=6))
    with pytest.raises(
        DatasetError, match=r"mixed.held_back is 64, at most a quarter of images, and there are 3: give 4"
    ):
        _probe(config, index(3))


def test_the_sensitivity_alone_leaves_no_image_out(capsys: pytest.CaptureFixture[str]) -> None:
    window = _probe(make_config(sensitivity=9), index(7))
    assert window is not None
    assert len(window.rows) == 7
    assert _probe(make_config(), index(7)) is None
    assert capsys.readouterr().err == ""


def test_a_line_says_that_images_are_few_to_calibrate_on(capsys: pytest.CaptureFixture[str]) -> None:
    for count in (1, 31, 32):
        _warn_of_few(count)
    one, many = capsys.readouterr().err.splitlines()
    assert one == (
        "warning: calibrate: 1 image is few to calibrate on: activations beyond the ranges seen there will be clipped; "
        "give 32 or more"
    )
    assert many.startswith("warning: calibrate: 31 images are few")


def test_saturation_of_images_without_three_channels_is_refused(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(10)]
    save_model(make_tiny_model(in_chans=1), tmp_path / "gray", class_names=names, mean=(0.5,), std=(0.5,))
    teacher, output = f"local-dir:{tmp_path / 'gray'}", str(tmp_path / "out")
    check_settings(make_config(teacher, output, qat=QatConfig()))
    views = QatConfig(augment=AugmentConfig(saturation=0.2))
    with pytest.raises(
        ConfigError, match=r"^qat\.augment\.saturation is 0\.2, but the teacher's images have 1 channels"
    ):
        check_settings(make_config(teacher, output, qat=views))
