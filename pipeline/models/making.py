"""Make a timm model, with weights from timm, a checkpoint or a folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.errors import CheckpointError, ModelError
from pipeline.models.checkpoints import find_weights_file, read_checkpoint
from pipeline.models.config import LOCAL_DIR, ModelConfig
from pipeline.models.epsilon import set_epsilon
from pipeline.models.folders import read_model_config
from pipeline.models.image_size import asked_size, model_input_size, size_notices, unknown_size
from pipeline.models.jax_weights import jax_first_layer, load_jax_weights
from pipeline.models.layouts import (
    TORCHVISION_PREPROCESSING,
    is_torchvision,
    names_of_transformers,
    rename_torchvision,
)
from pipeline.models.positions import resampling
from pipeline.models.timm_factory import as_trained, check_known, create_model, fill_model, make_outline
from pipeline.models.transformers_folder import is_transformers
from pipeline.models.transformers_weights import describe_folder, folder_preprocessing, read_weights
from pipeline.models.weights import (
    check_amount,
    check_first_layer,
    check_floating,
    check_heads,
    check_representation,
    head_classes,
)
from pipeline.storage import is_local


@dataclasses.dataclass(frozen=True)
class MadeModel:
    """A model with its weights.

    Attributes:
        notices: messages for the user about how the weights were fitted to the model.
        preset: whether its normalization is the one that goes with the layout of its file, as torchvision's layout has
            one.
    """

    model: nn.Module
    notices: tuple[str, ...] = ()
    preset: bool = False


def make_model(config: ModelConfig, *, trained: bool) -> MadeModel:
    """Make a model and load its weights; see `pipeline.models.load_model`.

    Raises:
        ModelError, CheckpointError: as `load_model`.
    """
    check_known(config.name)
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
    model = create_model(config, pretrained=config.pretrained)
    if trained:
        _check_own_head(config, model)
        _check_own_patches(config, model)
    if not config.pretrained:
        return MadeModel(model)
    return MadeModel(model, size_notices(config, f"model {config.name!r}", model, asked_size(config, model), trained))


def _from_checkpoint(config: ModelConfig, uri: str, trained: bool) -> MadeModel:
    """Load through timm, which knows the layouts of each family's published checkpoints."""
    outline, what = make_outline(config), f"checkpoint {uri!r}"
    weights, preprocessing, left_out = _read_weights(config, uri, outline)
    if trained:
        check_representation(what, weights, outline)
    if jax_first_layer(weights) is not None:
        model = load_jax_weights(config, uri, weights)
        return MadeModel(model, size_notices(config, what, model, resampling(weights, model), trained))
    check_heads(uri, weights, outline)
    check_first_layer(what, weights, outline)
    overlay = {"num_classes": outline.num_classes, "input_size": model_input_size(outline), "label_offset": 0}
    model = _fill_from_checkpoint(config, uri, weights, {**overlay, **preprocessing})
    notices = size_notices(config, what, model, resampling(weights, model), trained)
    notices = notices or unknown_size(config, what, model)
    notices = (*left_out, *notices, *_torchvision_notice(config, what, preprocessing))
    return MadeModel(model, notices, preset=bool(preprocessing))


def _from_folder(config: ModelConfig, trained: bool) -> MadeModel:
    """Load through timm too, which reads the folder's config; the file of weights is read here."""
    outline, what = make_outline(config), f"model {config.name!r}"
    uri = find_weights_file(config.name.removeprefix(LOCAL_DIR))
    # The preprocessing that a folder states counts, whatever the layout of its weights.
    weights, _, left_out = _read_weights(config, uri, outline)
    # The weights count, whatever the config says: people put another head into a model, and save it.
    classes = head_classes(weights, outline)
    if trained:
        if config.num_classes is None:
            check_heads(uri, weights, outline)
        _check_own_head(config, outline, classes)
        check_first_layer(what, weights, outline)
        check_representation(what, weights, outline)
    model = fill_model(config, uri, weights, {} if classes is None else {"num_classes": classes})
    change = resampling(weights, model) or asked_size(config, model)
    return MadeModel(model, (*left_out, *size_notices(config, what, model, change, trained)))


def _from_transformers(config: ModelConfig, folder: str, stated: dict[str, Any], trained: bool) -> MadeModel:
    """Load a folder of transformers as the timm model that computes the same."""
    described = describe_folder(what := f"model {config.name!r}", stated)
    own = dataclasses.replace(config, **described.settings())
    outline = make_outline(own)
    uri, weights, left_out = read_weights(folder, described.layout, outline, use_ema=config.use_ema)
    asked = dataclasses.replace(
        own,
        num_classes=config.num_classes or own.num_classes,
        in_chans=config.in_chans or own.in_chans,
        model_args={**own.model_args, **config.model_args},
    )
    wanted = make_outline(asked)
    preprocessing, notices = folder_preprocessing(config, folder, described.processor, model_input_size(wanted)[1])
    if trained:
        check_heads(uri, weights, wanted)
        check_first_layer(what, weights, wanted)
    overlay = {
        "num_classes": own.num_classes,
        "input_size": model_input_size(outline),
        "label_offset": 0,
        **preprocessing,
    }
    model = fill_model(asked, uri, weights, overlay)
    notices += (*left_out, *set_epsilon(what, model, described.epsilon, trained=trained))
    return MadeModel(model, (*notices, *size_notices(config, what, model, resampling(weights, model), trained)))


def _read_weights(
    config: ModelConfig, uri: str, outline: nn.Module
) -> tuple[dict[str, Tensor], Mapping[str, Any], tuple[str, ...]]:
    """Return weights under names that timm knows, the preprocessing that goes with the file's layout, and notices."""
    names, preprocessing = outline.state_dict().keys(), {}
    weights, notices = read_checkpoint(uri, names, use_ema=config.use_ema)
    if is_torchvision(weights, names):
        weights, preprocessing = rename_torchvision(uri, weights, names), TORCHVISION_PREPROCESSING
    check_floating(uri, weights, outline)
    check_amount(uri, weights, outline)
    return weights, preprocessing, notices


def _torchvision_notice(config: ModelConfig, what: str, preprocessing: Mapping[str, Any]) -> tuple[str, ...]:
    """Say which settings are torchvision's, which a file of weights does not state, and not timm's for that name."""
    assumed = [f"{name} {value}" for name, value in preprocessing.items() if getattr(config, name) is None]
    if not assumed:
        return ()
    return (f"{what} has the layout of torchvision, whose own presets are taken unless set: {', '.join(assumed)}",)


def _fill_from_checkpoint(
    config: ModelConfig, uri: str, weights: dict[str, Tensor], overlay: dict[str, Any]
) -> nn.Module:
    try:
        return fill_model(config, uri, weights, overlay)
    except CheckpointError as error:
        if not names_of_transformers(weights):
            raise
        folder = (uri.rpartition("/")[0] or ".") if is_local(uri) else "FOLDER"
        hint = f"set name to {LOCAL_DIR}{folder}, a folder with its config.json on this machine, and no checkpoint"
        raise CheckpointError(f"{error}; its tensors have the names of transformers: {hint}") from error


def _check_own_head(config: ModelConfig, model: nn.Module, classes: int | None = None) -> None:
    """Refuse another class count than the weights', or their config's: timm would give the model a random head."""
    own = classes or model.pretrained_cfg.get("num_classes")  # type: ignore[union-attr]
    if own is not None and own != model.num_classes:
        raise ModelError(f"model {config.name!r} was trained for {own} classes, num_classes says {model.num_classes}")


def _check_own_patches(config: ModelConfig, model: nn.Module) -> None:
    """Check that a teacher reads the patches and channels that it was trained on.

    Raises:
        CheckpointError: the config asks for others.
    """
    if config.in_chans is None and not config.model_args:
        return
    check_first_layer(f"model {config.name!r}", as_trained(config).state_dict(), model)
