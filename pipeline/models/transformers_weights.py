"""Read the weights and the preprocessing of a transformers folder for a timm model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.errors import CheckpointError, ModelError
from pipeline.models.checkpoints import find_weights_file, read_state_dict
from pipeline.models.config import ModelConfig
from pipeline.models.image_processor import read_processor
from pipeline.models.layouts import Layout, add_class_position, older_name, rename, source_names
from pipeline.models.transformers_folder import TransformersClassifier, describe_classifier
from pipeline.models.weights import check_floating


def describe_folder(what: str, config: Mapping[str, Any]) -> TransformersClassifier:
    """Return the timm model that a folder's config describes.

    Raises:
        ModelError: the config describes no model of timm's; the message begins with `what`.
    """
    try:
        return describe_classifier(config)
    except ValueError as error:
        raise ModelError(f"{what}: its config.json {error}") from error


def read_weights(
    folder: str, layout: Layout, outline: nn.Module, *, use_ema: bool
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Read the weights of a folder under timm's names.

    Args:
        folder: location of the folder, which holds the weights in one file, or in several with an index.
        layout: names that transformers gives to the tensors.
        outline: the timm model that the folder's config describes, on the meta device.
        use_ema: whether to prefer averaged weights, as in `read_state_dict`.

    Returns:
        The URI of the weights, the weights, and a notice if some tensors have no part in the classifier.

    Raises:
        CheckpointError: the weights are of another kind, do not fit the config, or are not floating-point numbers.
    """
    uri, made = find_weights_file(folder), outline.state_dict()
    read = read_state_dict(uri, source_names(layout, made), use_ema=use_ema)
    read = {older_name(name): value for name, value in read.items()}
    weights = rename(uri, read, layout, made)
    if outline.no_embed_class:
        weights = add_class_position(weights)
    check_floating(uri, weights, outline)
    for name, value in weights.items():
        if value.shape != (wanted := made[name].shape):
            if name.startswith("head") and value.shape[1:] == wanted[1:]:
                classes = f"has {value.shape[0]} classes, its config.json {wanted[0]}"
                raise CheckpointError(f"checkpoint {uri!r} {classes}: correct id2label and label2id there")
            found = f"{layout.sources(name)[0]!r} is {list(value.shape)} in timm's shape"
            raise CheckpointError(f"checkpoint {uri!r}: {found}, its config.json says {list(wanted)}")
    left_out = sorted(name for name in read if name.startswith(layout.left_out))
    notice = f"checkpoint {uri!r}: left out, as transformers' classifier does not read them: {', '.join(left_out)}"
    return uri, weights, (notice,) if left_out else ()


def folder_preprocessing(
    config: ModelConfig, folder: str, processor: str, size: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a folder's preprocessing in timm's terms; with a notice if timm's own is taken instead, or another size.

    Args:
        config: settings of the model.
        folder: location of the model's folder.
        processor: class that prepares its images, as `TransformersClassifier` has it.
        size: edge, in pixels, of the images that the model reads.

    Raises:
        ModelError: the folder states preprocessing that timm does not do, and the config does not give its own.
    """
    given = {"mean": config.mean, "std": config.std, **config.preprocessing()}
    everything = all(given.get(name) for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode"))
    if everything:
        return {}, ()
    try:
        stated = read_processor(folder, processor)
    except ValueError as error:
        advice = "set mean, std, interpolation, crop_pct and crop_mode"
        raise ModelError(f"model {config.name!r}: its {error}; {advice}") from error
    if stated is not None:
        settings, edge = stated
        # A size that was asked for has a notice of its own.
        unexpected = edge != size and "img_size" not in (config.model_args or {})
        return settings, (_other_size(config, edge, size),) if unexpected else ()
    return {}, (
        f"model {config.name!r} has no preprocessor_config.json: mean, std, interpolation, crop_pct and crop_mode are "
        "timm's for this architecture where they are not set",
    )


def _other_size(config: ModelConfig, edge: int, size: int) -> str:
    return (
        f"model {config.name!r} reads {size}x{size} pixels, but its preprocessor_config.json produces {edge}x{edge}: "
        f"images are resized and cropped to {size} at the same ratio; set model_args.img_size to {edge} to use that "
        "size"
    )
