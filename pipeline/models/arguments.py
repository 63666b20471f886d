"""Check the arguments that a config passes on to `timm.create_model`."""

import inspect
from collections.abc import Mapping
from typing import Any

import timm
import timm.models

from pipeline.errors import ConfigError

# Arguments of timm's factory and builder, not of a model: timm takes them out before the model is made, and most then
# change nothing, load other weights, or wrap the model in something else than a classifier.
_NOT_THE_MODELS = (
    set(inspect.signature(timm.create_model).parameters)
    | set(inspect.signature(timm.models.build_model_with_cfg).parameters)
    | {"features_only", "out_indices", "feature_cls", "output_fmt", "pruned", "device", "dtype"}
) - {"kwargs"}
_INSTEAD = {
    "model_name": "name",
    "pretrained": "pretrained",
    "checkpoint_path": "checkpoint",
    "pretrained_cfg": "checkpoint, mean, std, interpolation, crop_pct and crop_mode",
    "pretrained_cfg_overlay": "checkpoint, mean, std, interpolation, crop_pct and crop_mode",
}
# Preprocessing lives in timm's `pretrained_cfg`, beside the model: settings of ModelConfig.
_SETTINGS = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "class_names", "use_ema")


def check_model_args(model_args: Mapping[str, Any], explicit: Mapping[str, Any]) -> None:
    """Refuse arguments that timm would ignore, or that contradict a setting of their own.

    What is left is passed to the model's class, which raises for a name that it does not know.

    Args:
        model_args: as given.
        explicit: the settings `num_classes` and `in_chans`; None where they are left open.

    Raises:
        ConfigError: with the name of the argument and what to set instead.
    """
    for name, value in model_args.items():
        if name in _NOT_THE_MODELS:
            instead = f": set {_INSTEAD[name]} instead" if name in _INSTEAD else ""
            raise ConfigError(f"model_args.{name} is not an argument of the model{instead}")
        if name in _SETTINGS:
            raise ConfigError(
                f"model_args.{name} is not an argument of the model: set {name} beside model_args instead"
            )
        if value is None:
            raise ConfigError(f"model_args.{name} is null, which timm ignores: leave it out")
        if explicit.get(name) is not None and explicit[name] != value:
            raise ConfigError(f"{name} is {explicit[name]}, model_args.{name} is {value}: give one of the two")
