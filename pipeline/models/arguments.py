"""Check the arguments that a config passes on to `timm.create_model`."""

import inspect
from collections.abc import Mapping
from typing import Any, get_args

import timm
import timm.models
from torch import nn

from pipeline.errors import ConfigError

# Arguments of timm's factory and builder, not of a model. timm removes them before it makes the model; most of them
# have no effect, load other weights, or wrap the model so that it is no classifier any more.
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
# Preprocessing belongs to timm's `pretrained_cfg`, not to the model; here it is set in ModelConfig.
_SETTINGS = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "class_names", "use_ema")
# YAML's words for truth values; no argument of a model takes such a text.
_TRUTH = ("true", "false", "yes", "no", "on", "off")


def check_model_args(model_args: Mapping[str, Any], explicit: Mapping[str, Any]) -> None:
    """Refuse arguments that timm would ignore, or that contradict a setting of ModelConfig.

    The others are passed to the model's class, which raises for names that it does not know.

    Args:
        model_args: the arguments by name: those that the user gave, and texts that the config of a saved model states.
        explicit: values of the settings `num_classes` and `in_chans`, by name; None where one is not set.

    Raises:
        ConfigError: an argument is refused; the message says what to set instead.
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
        if isinstance(value, str) and value.strip().lower() in _TRUTH:
            raise ConfigError(f"model_args.{name} is the text {value!r}, which counts as true: write it without quotes")
        if explicit.get(name) is not None and explicit[name] != value:
            raise ConfigError(f"{name} is {explicit[name]}, model_args.{name} is {value}: give one of the two")


def check_argument_types(model_args: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse values of a wrong type that Python would silently take as true or false.

    Args:
        model_args: the arguments by name: those that the user gave, and texts that the config of a saved model states.
        model: the model that timm made with these arguments.

    Raises:
        ConfigError: a boolean parameter was given something else, or another parameter was given a boolean.
    """
    for name, value in model_args.items():
        parameter = _parameter(model, name)
        if parameter is None:
            continue
        default, is_bool = parameter.default, isinstance(value, bool)
        if isinstance(default, bool) or (default is None and _is_truth(parameter.annotation)):
            if not is_bool:
                raise ConfigError(f"model_args.{name} must be true or false, not {value!r:.80}")
        elif is_bool and isinstance(default, int | float | str):
            raise ConfigError(f"model_args.{name} must be like {default!r}, not {value}")


def _parameter(model: nn.Module, name: str) -> inspect.Parameter | None:
    """Return a parameter of a model's class, or of a base class to which it passes further arguments."""
    for family in type(model).__mro__:
        if "__init__" in vars(family) and name in (found := inspect.signature(family).parameters):
            return found[name]
    return None


def _is_truth(annotation: Any) -> bool:
    return annotation is bool or set(get_args(annotation)) == {bool, type(None)}
