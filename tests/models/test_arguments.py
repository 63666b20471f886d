"""Arguments that timm would ignore."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import ModelConfig, load_model
from tests.conftest import TINY


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


@pytest.mark.parametrize("crop_pct", [0.0, 2.5, float("nan")])
def test_a_crop_that_is_no_share_is_refused(crop_pct: float) -> None:
    with pytest.raises(ConfigError, match="crop_pct must be"):
        ModelConfig(name="a", crop_pct=crop_pct)


@pytest.mark.parametrize("name", ["qkv_bias", "class_token", "pre_norm", "dynamic_img_size", "fc_norm", "depth"])
@pytest.mark.parametrize("value", ["true", "False", " no", "off"])
def test_a_text_is_no_truth_value(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"model_args.{name} is the text '{value}', which counts as true: write it"):
        ModelConfig(name="vit_tiny_patch16_224", model_args={name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("qkv_bias", "0", "must be true or false, not '0'"),
        ("qkv_bias", [False], r"must be true or false, not \[False\]"),
        ("no_embed_class", 0, "must be true or false, not 0"),
        # The default is None.
        ("fc_norm", "none", "must be true or false, not 'none'"),
        ("mlp_ratio", True, "must be like 4.0, not True"),
        ("num_heads", True, "must be like 12, not True"),
    ],
)
def test_values_of_another_type_are_refused_where_python_takes_them(name: str, value: Any, message: str) -> None:
    asked = ModelConfig(name="vit_tiny_patch16_224", model_args={**TINY, name: value})
    with pytest.raises(ConfigError, match=f"^model_args.{name} {message}$"):
        load_model(asked, trained=False)


def test_the_parameters_of_a_class_below_are_checked_as_well() -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    asked = ModelConfig(name="deit_tiny_distilled_patch16_224", model_args={**sizes, "qkv_bias": "0"})
    with pytest.raises(ConfigError, match="qkv_bias must be true or false"):
        load_model(asked, trained=False)


def test_arguments_that_a_folder_states_are_checked_as_well(tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "m")
    stated = json.loads((tmp_path / "m" / "config.json").read_text())
    stated["model_args"]["qkv_bias"] = "false"
    (tmp_path / "m" / "config.json").write_text(json.dumps(stated))
    with pytest.raises(ConfigError, match="qkv_bias must be true or false, not 'false'"):
        load_model(ModelConfig(name=f"local-dir:{tmp_path / 'm'}"))


@pytest.mark.parametrize("changes", [{"qkv_bias": False}, {"fc_norm": True}, {"mlp_ratio": 2}, {"global_pool": "avg"}])
def test_values_of_the_right_type_are_passed_on(changes: dict[str, Any]) -> None:
    model = load_model(ModelConfig(name="vit_tiny_patch16_224", model_args={**TINY, **changes}), trained=False).model
    assert ("blocks.0.attn.qkv.bias" in model.state_dict()) == changes.get("qkv_bias", True)
