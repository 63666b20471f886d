from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pipeline.checks import check_range
from pipeline.distillation.config import DistillationConfig, StudentConfig
from pipeline.errors import ConfigError
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.terms import Term
from pipeline.models import ModelConfig
from pipeline.quantization.config import CalibrationConfig
from pipeline.synthesis.config import PoolConfig
from pipeline.workers import WorkersConfig

TEACHER = ModelConfig(name="tiny")
DISTILL: dict[str, Any] = {
    **{"teacher": TEACHER, "student": StudentConfig(depth_pruned=[0])},
    **{"images": "images", "output": "output"},
}
CALIBRATE: dict[str, Any] = {"teacher": TEACHER, "images": "images", "output": "output"}


@pytest.mark.parametrize(
    ("value", "ends", "message"),
    [
        (-1, {"low": 0}, "x must not be negative, not -1"),
        (0, {"low": 0, "open_low": True}, "x must be positive, not 0"),
        (1, {"low": 2}, "x must be at least 2, not 1"),
        (2, {"low": 2, "open_low": True}, "x must be more than 2, not 2"),
        (1.0, {"low": 0, "high": 1, "open_high": True}, r"x must lie in \[0, 1\), not 1.0"),
        (0.0, {"low": 0, "high": 1, "open_low": True}, r"x must lie in \(0, 1\], not 0.0"),
        (float("nan"), {"low": 0}, "x must not be negative, not nan"),
    ],
)
def test_a_number_outside_its_range_is_refused(value: float, ends: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_range("x", value, **ends)


@pytest.mark.parametrize("value", [None, 0, 0.5, 1])
def test_a_number_within_its_range_passes(value: float | None) -> None:
    check_range("x", value, 0, 1)


@pytest.mark.parametrize("value", ["3", True, [1], 1j])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^x must be a number, not "):
        check_range("x", value, 0)


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (InversionConfig, {"scope": "publised"}, r"scope must be one of \['image', 'published'\], not 'publised'"),
        (InversionConfig, {"ranking": "cls"}, r"ranking must be one of \['auto', 'cls_attention', .*\], not 'cls'"),
        (InversionConfig, {"dtype": "bf16"}, "dtype must be one of .*, not 'bf16'"),
        (WorkersConfig, {"device": "gpu"}, "workers.device must be one of .*, not 'gpu'"),
        (PoolConfig, {"device": "gpu"}, "pool.device must be one of .*, not 'gpu'"),
        (DistillationConfig, {**DISTILL, "optimizer": "adam"}, "optimizer must be one of .*, not 'adam'"),
        (DistillationConfig, {**DISTILL, "schedule": "linear"}, "schedule must be one of .*, not 'linear'"),
        (CalibrationConfig, {**CALIBRATE, "mode": "sprase"}, "mode must be one of .*, not 'sprase'"),
        (CalibrationConfig, {**CALIBRATE, "formats": ["pt2", "pt3"]}, "formats must be one of .*, not 'pt3'"),
        (partial(Term, "ours", 1.0, abs), {"sees": "pixel"}, "term 'ours': sees must be one of .*, not 'pixel'"),
    ],
)
def test_python_code_gets_no_other_choices_than_the_command_line(
    config_class: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_class(**settings)


def test_a_choice_may_be_left_out_where_none_is_one() -> None:
    assert Term("ours", 1.0, abs).network is None
    assert InversionConfig(ranking="pool_attention").ranking == "pool_attention"
