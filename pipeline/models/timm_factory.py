"""Call timm's factory, and say in one line why it fails."""

import dataclasses
import difflib
import logging
import pickle
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import safetensors
import timm
import timm.models
import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ModelError, one_line
from pipeline.models.arguments import check_argument_types
from pipeline.models.config import LOCAL_DIR, ModelConfig
from pipeline.models.folders import describe_contents, folder_of_timm
from pipeline.models.hub import quiet_attempts
from pipeline.models.weights import describe_misfit, describe_tensors, named_layers
from pipeline.storage import exists, why_missing

# What timm raises for an unknown name, an argument that the family does not take, or a weight file that is missing or
# does not fit; what huggingface_hub raises (ValueError or OSError) for weights that cannot be downloaded; and what the
# readers of corrupt files raise.
TIMM_ERRORS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError, OSError, EOFError),
    *(pickle.UnpicklingError, safetensors.SafetensorError, struct.error),
)


def check_known(name: str) -> None:
    """Refuse a name that timm does not have; one with a scheme, such as `local-dir:`, is looked up elsewhere.

    Raises:
        ModelError: it is unknown; the message names the most similar one.
    """
    own = name.rpartition("/")[2]
    if ":" in name or timm.is_model(own):
        return
    near = difflib.get_close_matches(own.partition(".")[0], timm.list_models(), n=1)
    advice = f"did you mean {near[0]!r}?" if near else "`timm.list_models()` lists the names"
    raise ModelError(f"timm {timm.__version__} has no model {name!r}: {advice}")


def create_model(config: ModelConfig, **arguments: Any) -> nn.Module:
    """Make the model that a config asks for.

    Args:
        config: settings of the model.
        arguments: arguments of `timm.create_model`, which win over those that the config gives.

    Raises:
        ModelError: timm cannot make it, or an argument would be taken for another.
    """
    explicit = {"num_classes": config.num_classes, "in_chans": config.in_chans}
    explicit = {name: value for name, value in explicit.items() if value is not None}
    try:
        with quiet_attempts(config.name), _readable(config) as name:
            model = timm.create_model(name, **{**config.model_args, **explicit, **arguments})
    except TIMM_ERRORS as error:
        hint = _way_on(config, error) if arguments == {"pretrained": True} else _why_no_folder(config)
        reason = reason_of(error).removesuffix(".") if hint else reason_of(error)
        raise ModelError(f"cannot make model {config.name!r}: {reason}{hint}") from error
    # The arguments that a folder's config states are checked as well: JSON may hold texts for truth values.
    stated = {name: value for name, value in timm.models.get_model_args(model).items() if isinstance(value, str)}
    check_argument_types({**stated, **config.model_args}, model)
    return model


@contextmanager
def _readable(config: ModelConfig) -> Iterator[str]:
    """Yield the name under which timm finds a model."""
    # An absolute path, because timm does not expand `~`.
    name = config.located().name
    if not name.startswith(LOCAL_DIR):
        yield name
        return
    with folder_of_timm(name.removeprefix(LOCAL_DIR)) as folder:
        yield LOCAL_DIR + folder


def _way_on(config: ModelConfig, error: Exception) -> str:
    """Say how to go on without the network, if that is why published weights cannot be loaded."""
    if config.name.startswith(LOCAL_DIR) or not isinstance(error, OSError):
        return _why_no_folder(config)
    return f"; without network, give checkpoint, a file of weights, or {LOCAL_DIR}FOLDER as name"


def _why_no_folder(config: ModelConfig) -> str:
    folder = config.name.removeprefix(LOCAL_DIR)
    if folder == config.name:
        return ""
    return describe_contents(folder) if exists(folder) else why_missing(folder)


def make_outline(config: ModelConfig) -> nn.Module:
    """Return the model on the meta device: names and shapes without storage."""
    with torch.device("meta"):
        return create_model(config, pretrained=False)


def as_trained(config: ModelConfig) -> nn.Module:
    """Return the outline of a model as its weights' own config describes it."""
    return make_outline(dataclasses.replace(config, in_chans=None, num_classes=None, model_args={}))


def fill_model(config: ModelConfig, uri: str, weights: dict[str, Tensor], overlay: dict[str, Any]) -> nn.Module:
    """Make the model with the given weights.

    Args:
        config: settings of the model.
        uri: location of the weights, for messages.
        weights: tensors under names that timm knows.
        overlay: entries that replace those of the model's `pretrained_cfg`.

    Raises:
        CheckpointError: the weights do not fit, or some are missing, which timm lets pass for some families. A
            classifier may be missing where the model is to have other classes than its weights.
    """
    given = {"source": None, "file": None, "state_dict": weights, "custom_load": False, **overlay}
    try:
        with _missing_tensors() as missing:
            model = create_model(config, pretrained=True, pretrained_cfg_overlay=given)
    except ModelError as error:
        raise misfit(config, uri, reason_of(error.__cause__ or error)) from error
    if lacking := [name for name in missing if not _is_replaced(name, model)]:
        raise misfit(config, uri, describe_tensors("missing", lacking))
    model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr]
    return model


def misfit(config: ModelConfig, uri: str, reason: str) -> CheckpointError:
    """Return the error of weights that a model cannot be filled with."""
    return CheckpointError(f"checkpoint {uri!r} does not fit model {config.name!r}: {reason}")


@contextmanager
def _missing_tensors() -> Iterator[list[str]]:
    """Collect the names of tensors that timm leaves as they were initialized, which it only logs."""
    log, missing = logging.getLogger("timm.models._builder"), []

    def collect(record: logging.LogRecord) -> bool:
        found = re.match(r"Missing keys \((.*?)\) discovered", record.getMessage())
        missing.extend(found[1].split(", ") if found else ())
        return record.levelno >= logging.WARNING

    level = log.level
    log.addFilter(collect)
    log.setLevel(logging.INFO)
    try:
        yield missing
    finally:
        log.setLevel(level)
        log.removeFilter(collect)


def _is_replaced(name: str, model: Any) -> bool:
    """Return whether a tensor belongs to a classifier that timm replaced to get another number of classes."""
    replaced = model.pretrained_cfg.get("num_classes") not in (None, model.num_classes)
    return replaced and name.rpartition(".")[0] in named_layers(model, "classifier")


def reason_of(error: BaseException) -> str:
    """Say in one line why timm cannot make or fill a model."""
    if isinstance(error, KeyError) and error.args == ("architecture",):
        return "its config.json names no timm architecture (a folder of transformers is read without a checkpoint)"
    return describe_misfit(error) or one_line(error, limit=400)
