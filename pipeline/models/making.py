"""Make a timm model, with weights from timm, a checkpoint or a folder."""

import dataclasses
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import timm
import timm.models
import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ModelError, one_line
from pipeline.models.arguments import check_argument_types
from pipeline.models.checkpoints import find_weights_file, read_state_dict
from pipeline.models.config import LOCAL_DIR, ModelConfig
from pipeline.models.folders import read_model_config
from pipeline.models.layouts import rename_torchvision
from pipeline.models.positions import resampling
from pipeline.models.transformers_folder import is_transformers
from pipeline.models.transformers_weights import describe_folder, folder_preprocessing, read_weights, set_epsilon
from pipeline.models.weights import (
    check_first_layer,
    check_floating,
    check_heads,
    check_jax_head,
    describe_misfit,
    jax_first_layer,
)
from pipeline.storage import exists, why_missing

# Errors of timm for an unknown name, an argument that the family does not take, or a weight file that is missing or
# does not fit; of huggingface_hub (ValueError or OSError) for weights that cannot be downloaded; and of the readers of
# corrupt files.
_TIMM_ERRORS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError, OSError, EOFError),
    *(pickle.UnpicklingError, safetensors.SafetensorError, struct.error),
)


@dataclasses.dataclass(frozen=True)
class MadeModel:
    """A model with its weights, and notices for the user about how they were fitted to it."""

    model: nn.Module
    notices: tuple[str, ...] = ()


def make_model(config: ModelConfig, *, trained: bool) -> MadeModel:
    """Make a model and load its weights; see `pipeline.models.load_model`.

    Raises:
        ModelError, CheckpointError: as `load_model`.
    """
    from_folder = config.name.startswith(LOCAL_DIR) and config.checkpoint is None
    if trained and not (from_folder or config.pretrained or config.checkpoint):
        raise ModelError(
            f"model {config.name!r} has no trained weights: set pretrained, checkpoint, or a {LOCAL_DIR} name"
        )
    if config.checkpoint is not None:
        return _from_checkpoint(config, config.checkpoint, trained)
    if from_folder:
        folder = config.located().name.removeprefix(LOCAL_DIR)
        stated = read_model_config(folder)
        if is_transformers(stated):
            return _from_transformers(config, folder, stated, trained)
        return _from_folder(config, trained)
    model = _create(config, pretrained=config.pretrained)
    if trained:
        _check_own_head(config, model)
        _check_own_patches(config, model)
    if not config.pretrained:
        return MadeModel(model)
    return MadeModel(model, _size_notices(config, f"model {config.name!r}", model, _asked_size(config, model), trained))


def input_size_of(model: nn.Module, data_config: dict[str, Any]) -> tuple[int, int, int]:
    """Return channels, height and width that a model was made for; timm's config may state those of its training."""
    channels, height, width = data_config["input_size"]
    made_with = timm.models.get_model_args(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or made_with.get("img_size")
    if size is not None:
        height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(getattr(model, "in_chans", None) or made_with.get("in_chans") or channels), int(height), int(width)


def _create(config: ModelConfig, **arguments: Any) -> nn.Module:
    explicit = {"num_classes": config.num_classes, "in_chans": config.in_chans}
    explicit = {name: value for name, value in explicit.items() if value is not None}
    try:
        # An absolute path, because timm does not expand `~`.
        model = timm.create_model(config.located().name, **{**config.model_args, **explicit, **arguments})
    except _TIMM_ERRORS as error:
        folder = config.name.removeprefix(LOCAL_DIR)
        hint = "" if folder == config.name or exists(folder) else why_missing(folder)
        raise ModelError(f"cannot make model {config.name!r}: {_first_lines(error)}{hint}") from error
    # The arguments that a folder's config states are checked as well: JSON may hold texts for truth values.
    stated = {name: value for name, value in timm.models.get_model_args(model).items() if isinstance(value, str)}
    check_argument_types({**stated, **config.model_args}, model)
    return model


def _outline(config: ModelConfig) -> nn.Module:
    """Return the model on the meta device: names and shapes without storage."""
    with torch.device("meta"):
        return _create(config, pretrained=False)


def _from_checkpoint(config: ModelConfig, uri: str, trained: bool) -> MadeModel:
    """Load through timm, which knows the layouts of each family's published checkpoints."""
    outline = _outline(config)
    weights = _read_weights(config, uri, outline)
    if jax_first_layer(weights) is not None:
        return _from_jax(config, uri, weights, trained)
    check_heads(uri, weights, outline)
    check_first_layer(f"checkpoint {uri!r}", weights, outline)
    overlay = {
        "num_classes": outline.num_classes,
        "input_size": _size(outline),
        "label_offset": 0,
    }
    model = _fill(config, uri, weights, overlay)
    what = f"checkpoint {uri!r}"
    notices = _size_notices(config, what, model, resampling(weights, model), trained)
    return MadeModel(model, notices or _unknown_size(config, what, model))


def _from_folder(config: ModelConfig, trained: bool) -> MadeModel:
    """Load through timm too, which reads the folder's config; the file of weights is read here."""
    outline = _outline(config)
    uri = find_weights_file(config.name.removeprefix(LOCAL_DIR))
    weights = _read_weights(config, uri, outline)
    if trained:
        _check_own_head(config, outline)
        check_first_layer(f"model {config.name!r}", weights, outline)
    model = _fill(config, uri, weights, {})
    change = resampling(weights, model) or _asked_size(config, model)
    return MadeModel(model, _size_notices(config, f"model {config.name!r}", model, change, trained))


def _from_transformers(config: ModelConfig, folder: str, stated: dict[str, Any], trained: bool) -> MadeModel:
    """Load a folder of transformers as the timm model that computes the same."""
    described = describe_folder(what := f"model {config.name!r}", stated)
    own = dataclasses.replace(config, **described.settings())
    outline = _outline(own)
    preprocessing, notices = folder_preprocessing(config, folder)
    uri, weights, left_out = read_weights(folder, described.layout, outline, use_ema=config.use_ema)
    asked = dataclasses.replace(
        own,
        num_classes=config.num_classes or own.num_classes,
        in_chans=config.in_chans or own.in_chans,
        model_args={**own.model_args, **config.model_args},
    )
    if trained:
        wanted = _outline(asked)
        check_heads(uri, weights, wanted)
        check_first_layer(what, weights, wanted)
    overlay = {"num_classes": own.num_classes, "input_size": _size(outline), "label_offset": 0, **preprocessing}
    model = _fill(asked, uri, weights, overlay)
    notices += (*left_out, *set_epsilon(what, model, described.epsilon, trained=trained))
    return MadeModel(model, (*notices, *_size_notices(config, what, model, resampling(weights, model), trained)))


def _read_weights(config: ModelConfig, uri: str, outline: nn.Module) -> dict[str, Tensor]:
    names = outline.state_dict().keys()
    weights = rename_torchvision(uri, read_state_dict(uri, names, use_ema=config.use_ema), names)
    check_floating(uri, weights, outline)
    return weights


def _fill(config: ModelConfig, uri: str, weights: dict[str, Tensor], overlay: dict[str, Any]) -> nn.Module:
    """Make the model with the given weights."""
    given = {"source": None, "file": None, "state_dict": weights, "custom_load": False, **overlay}
    try:
        model = _create(config, pretrained=True, pretrained_cfg_overlay=given)
    except ModelError as error:
        reason = _first_lines(error.__cause__ or error)
        raise CheckpointError(f"checkpoint {uri!r} does not fit model {config.name!r}: {reason}") from error
    model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr]
    return model


def _from_jax(config: ModelConfig, uri: str, weights: dict[str, Tensor], trained: bool) -> MadeModel:
    """Load through the family's reader of Google's published `.npz` files, which takes a file.

    It silently skips tensors that it does not find, the classifier among others. The model is filled with NaN before,
    so that skipped tensors are found and refused.
    """
    model: Any = _create(config, pretrained=False)
    if not hasattr(model, "load_pretrained"):
        family = type(model).__name__
        raise CheckpointError(f"checkpoint {uri!r} has the layout of JAX, which timm does not read for {family}")
    check_jax_head(uri, weights, model)
    first = {f"{layer}.weight": jax_first_layer(weights) for layer in (model.pretrained_cfg["first_conv"],)}
    check_first_layer(f"checkpoint {uri!r}", {k: v for k, v in first.items() if v is not None}, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with tempfile.TemporaryDirectory(prefix="jax-") as folder:
        path = Path(folder, "weights.npz")
        np.savez(path, **{name: value.float().numpy() for name, value in weights.items()})  # pyright: ignore[reportArgumentType]
        try:
            model.load_pretrained(str(path))
        except _TIMM_ERRORS as error:
            reason = _first_lines(error)
            raise CheckpointError(f"checkpoint {uri!r} does not fit model {config.name!r}: {reason}") from error
    lacking = [name for name, value in model.named_parameters() if bool(value.isnan().any())]
    if lacking:
        raise CheckpointError(f"checkpoint {uri!r} lacks {len(lacking)} tensors of the model, as {lacking[0]!r}")
    return MadeModel(model, _size_notices(config, f"checkpoint {uri!r}", model, resampling(weights, model), trained))


def _size_notices(
    config: ModelConfig, what: str, model: nn.Module, change: str | None, trained: bool
) -> tuple[str, ...]:
    """Report that timm resampled weights of another image size; refuse it if nobody asked for that.

    Args:
        what: the source of the weights, for the message.
        change: what they were trained on; None if nothing was resampled.

    Raises:
        CheckpointError: weights of a trained model were resampled, and `model_args.img_size` is not set.
    """
    if change is None:
        return ()
    _, height, width = _size(model)
    message = f"{what} was trained on {change}, the model reads {height}x{width} pixels"
    if trained and "img_size" not in config.model_args:
        raise CheckpointError(
            f"{message}: resampled, it would be another model; set model_args.img_size to the size it was trained on, "
            f"or to {height} to accept the resampling"
        )
    return (f"{message}: timm resampled it, so its outputs differ from those at the size it was trained on",)


def _asked_size(config: ModelConfig, model: nn.Module) -> str | None:
    """Return the image size in the weights' own config if the given config asks for another; else None."""
    return _other_size(_as_trained(config), model) if config.model_args else None


def _other_size(trained: nn.Module, model: nn.Module) -> str | None:
    """Return the image size that a model was trained at if it reads another; None if it is the same."""
    (_, height, width), (_, *made) = (_size(each) for each in (trained, model))
    return None if [height, width] == made else f"{height}x{width} pixels"


def _unknown_size(config: ModelConfig, what: str, model: nn.Module) -> tuple[str, ...]:
    """Report that the image size of the weights is unknown (rotary positions, windows) if another one is asked for."""
    if "img_size" not in config.model_args:
        return ()
    others = {name: value for name, value in config.model_args.items() if name != "img_size"}
    named = _outline(dataclasses.replace(config, model_args=others))
    size = _other_size(named, model)
    if size is None or _shapes(named) != _shapes(model):
        return ()
    _, height, width = _size(model)
    message = f"{what} does not state the image size it was trained at: {config.name!r} is made for {size}"
    return (f"{message}, the model reads {height}x{width} as model_args.img_size says",)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def _size(model: nn.Module) -> tuple[int, int, int]:
    return input_size_of(model, dict(model.pretrained_cfg))  # type: ignore[arg-type]


def _as_trained(config: ModelConfig) -> nn.Module:
    """Return the outline of a model as its weights' own config describes it."""
    return _outline(dataclasses.replace(config, in_chans=None, num_classes=None, model_args={}))


def _check_own_head(config: ModelConfig, model: nn.Module) -> None:
    """Refuse another class count than the weights': timm would give the model a random head."""
    own = model.pretrained_cfg.get("num_classes")  # type: ignore[union-attr]
    if own is not None and own != model.num_classes:
        raise ModelError(f"model {config.name!r} was trained for {own} classes, num_classes says {model.num_classes}")


def _check_own_patches(config: ModelConfig, model: nn.Module) -> None:
    """Check that a teacher reads the patches and channels that it was trained on.

    Raises:
        CheckpointError: the config asks for others.
    """
    if config.in_chans is None and not config.model_args:
        return
    check_first_layer(f"model {config.name!r}", _as_trained(config).state_dict(), model)


def _first_lines(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args == ("architecture",):
        return "its config.json names no timm architecture (a folder of transformers is read without a checkpoint)"
    return describe_misfit(error) or one_line(error, limit=400)
