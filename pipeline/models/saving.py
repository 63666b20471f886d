"""Save a timm model as a folder that timm, and `load_model`, can read."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, first_few
from pipeline.file_kinds import MODEL_CONFIG
from pipeline.models.image_size import model_input_size
from pipeline.models.timm_factory import TIMM_ERRORS, reason_of
from pipeline.models.weights import head_classes, named_layers
from pipeline.vit.wrappers import wrapped_as


def save_model(
    model: nn.Module, folder: str | Path, *, class_names: list[str], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Save a model as a local folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    Args:
        model: a model made by `timm.create_model`, which recorded its arguments. Its weights are saved as safetensors.
        folder: path on this machine; made if it is missing.
        class_names: one name per class.
        mean, std: mean and standard deviation of pixels in [0, 1] that its images are normalized with, one number per
            channel.

    Raises:
        ModelError: there is not one name for each class of its classifier, or as `check_savable`.
    """
    check_savable(model)
    data_config = {
        "mean": mean,
        "std": std,
        "input_size": model_input_size(model),
    }
    with _counting(model, len(class_names)), _copying(model):
        timm.models.save_for_hf(  # pyright: ignore[reportPrivateImportUsage]
            model,
            str(folder),
            model_config={"label_names": list(class_names)},
            safe_serialization=True,
            data_config=data_config,
        )
    # Newer versions of safetensors write files that their owner alone may read; a cluster's workers may be others.
    shutil.copymode(Path(folder, MODEL_CONFIG), Path(folder, "model.safetensors"))


def check_savable(model: nn.Module) -> None:
    """Check that timm could load what `save_model` would write.

    Raises:
        ModelError: timm could not load it, because its factory makes no such model: the model has a head of several
            layers, blocks that were cut off, a wrapper, no classifier, or arguments that JSON cannot hold.
    """
    _check_tensors(model, _make_again(model))


def _make_again(model: Any) -> nn.Module:
    """Return the model that timm makes from the arguments that this one recorded, on the meta device.

    Raises:
        ModelError: the model recorded no arguments, or some that cannot be written as JSON.
    """
    family, architecture = type(model).__name__, (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        raise ModelError(f"{family} has no pretrained_cfg with an architecture, as models of timm.create_model have")
    if not hasattr(model, "num_classes"):
        raise ModelError(f"{family} has no classifier to save")
    arguments = timm.models.get_model_args(model)
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{family} was made with {name}={value!r:.80}, which a config.json cannot hold: make it with timm's "
                "name for that, a text"
            ) from error
    try:
        with torch.device("meta"):
            return timm.create_model(architecture, **arguments)
    except TIMM_ERRORS as error:
        raise ModelError(f"timm cannot make {architecture!r} again: {reason_of(error)}") from error


def _check_tensors(model: nn.Module, made: nn.Module) -> None:
    """Check that a model has the tensors of the one that timm would make of its folder, of any number of classes.

    Raises:
        ModelError: the tensors differ. timm would refuse the folder, or leave tensors as they were initialized.
    """
    own, wanted = set(model.state_dict()), set(made.state_dict())
    lacking, added = sorted(wanted - own), sorted(own - wanted)
    if not lacking and not added:
        return
    found = [f"has no {first_few(lacking)}"] * bool(lacking) + [f"has {first_few(added)}"] * bool(added)
    head = next((head for head in named_layers(model, "classifier") if added and added[0].startswith(f"{head}.")), None)
    advice = "" if head is None else f"; put the one layer that has weights in the place of {head!r}"
    if (inner := wrapped_as(model)) is not None:
        advice = f"; give the model that is wrapped, its {inner!r}"
    raise ModelError(
        f"{type(model).__name__} {' and '.join(found)}, unlike the model that timm would load from the folder{advice}"
    )


@contextmanager
def _copying(model: nn.Module) -> Iterator[None]:
    """Let a model give copies of its tensors inside the context.

    safetensors refuses tensors that layers share, as CoaT's do, and those in another order (`channels_last`).
    """

    def copy(_module: nn.Module, tensors: dict[str, Tensor], *_: Any) -> None:
        for name, value in tensors.items():
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)

    handle = model.register_state_dict_post_hook(copy)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _counting(model: Any, num_classes: int) -> Iterator[None]:
    """Let a model's `num_classes` be true inside the context: timm writes it, and people replace the head alone.

    Raises:
        ModelError: its classifier does not have `num_classes` classes.
    """
    stated = model.num_classes
    if num_classes != (own := head_classes(model.state_dict(), model) or stated):
        raise ModelError(f"{type(model).__name__} has {own} classes, class_names has {num_classes}")
    model.num_classes = num_classes
    try:
        yield
    finally:
        model.num_classes = stated
