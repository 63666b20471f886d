"""NaN and infinity are refused in every config, whatever the field holds them in."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest

from examples.digits.teacher import DigitsConfig
from pipeline.distillation import DistillationConfig, StudentConfig
from pipeline.errors import ConfigError
from pipeline.inversion import InversionConfig
from pipeline.models import ModelConfig


def distillation(**changes: Any) -> DistillationConfig:
    values: dict[str, Any] = {"teacher": ModelConfig(name="x"), "student": StudentConfig(depth_pruned=[0])}
    return DistillationConfig(**values, images="i", output="o", **changes)


def digits(**changes: Any) -> DigitsConfig:
    return DigitsConfig(output="o", **changes)


def model(**changes: Any) -> ModelConfig:
    return ModelConfig(name="x", **changes)


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        *((distillation, name, inf) for name in ("lr", "temperature", "token_weight", "label_weight", "weight_decay")),
        (distillation, "cache_gb", inf),
        (distillation, "lr", nan),
        (digits, "lr", inf),
        (digits, "noise", nan),
        (digits, "weight_decay", inf),
        (model, "mean", [nan, 0.5, 0.5]),
        (model, "mean", [0.5, inf, 0.5]),
        (model, "std", [nan, 0.5, 0.5]),
        (model, "model_args", {"img_size": 32, "drop_rates": [0.1, inf]}),
        (InversionConfig, "tv_l2", inf),
        (InversionConfig, "betas", (0.5, nan)),
    ],
)
def test_a_number_that_is_not_finite_is_refused(make: Callable[..., object], field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        make(**{field: value})
    assert str(refused.value) == f"{field} must be finite, not {value}"
