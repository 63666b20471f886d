"""Arguments that timm would ignore."""

from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import ModelConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {"pretrained": True}}, "model_args.pretrained is not an argument of the model: set pretrained"),
        ({"model_args": {"checkpoint_path": "a"}}, "set checkpoint instead"),
        ({"model_args": {"pretrained_strict": False}}, "pretrained_strict is not an argument of the model"),
        ({"model_args": {"features_only": True}}, "features_only is not"),
        ({"model_args": {"out_indices": 3}}, "out_indices is not"),
        ({"model_args": {"crop_pct": 1.0}}, "set crop_pct beside model_args"),
        ({"model_args": {"img_size": None}}, "img_size is null, which timm ignores"),
        ({"model_args": {"num_classes": 7}, "num_classes": 10}, "num_classes is 10, model_args.num_classes is 7"),
        ({"model_args": {"in_chans": 3}, "in_chans": 1}, "in_chans is 1, model_args.in_chans is 3"),
    ],
)
def test_arguments_that_timm_ignores_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(name="vit_tiny_patch16_224", **changes)


def test_the_same_value_twice_is_no_contradiction() -> None:
    assert ModelConfig(name="a", num_classes=10, model_args={"num_classes": 10}).num_classes == 10


@pytest.mark.parametrize("crop_pct", [0.0, 1.5, float("nan")])
def test_a_crop_beyond_the_image_is_refused(crop_pct: float) -> None:
    with pytest.raises(ConfigError, match="crop_pct must be"):
        ModelConfig(name="a", crop_pct=crop_pct)
