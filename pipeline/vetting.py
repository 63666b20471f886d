"""Check on the driver that a teacher is an image classifier, before any work."""

import re

import timm

from pipeline.dataset.schema import MAX_PATCHES
from pipeline.errors import ModelError
from pipeline.models import LOCAL_DIR, LoadedModel
from pipeline.models.folders import describe_problem, read_model_config
from pipeline.models.image_reader import num_patches
from pipeline.pictures import PICTURE_CHANNELS, describe_channels
from pipeline.trial import try_out

# Image towers of timm whose outputs are compared with texts: CLIP of all makers, and Meta's perception encoders.
_TOWER = re.compile("clip|pe_core")


def check_teacher(loaded: LoadedModel, *, classes: bool = True, stored: bool = False) -> None:
    """Refuse a teacher with which a job could run for hours without a useful result.

    Args:
        loaded: the teacher.
        classes: whether its output is read as a softmax over its classes, as everywhere except in a calibration without
            scores and training.
        stored: whether its images are to be stored in a dataset.

    Raises:
        ModelError: its number of channels is not that of pictures, it has too many patches to store, no classifier or a
            single logit, or its output for two trial images is not one logit per class.
    """
    check_pictures(loaded)
    if stored:
        check_stored(loaded)
    name, count = f"model {loaded.name!r}", len(loaded.class_names)
    if classes:
        _check_softmax(loaded)
    if count:
        try_out(loaded.model, name, image_shape=loaded.input_size, num_classes=count)


def check_pictures(loaded: LoadedModel) -> None:
    """Refuse a model whose number of channels is not that of pictures.

    Raises:
        ModelError: the model reads another number of channels; the message gives it.
    """
    channels = loaded.input_size[0]
    if channels not in PICTURE_CHANNELS:
        raise ModelError(describe_channels(loaded.name, channels))


def check_stored(loaded: LoadedModel) -> None:
    """Refuse a model whose images a dataset cannot hold.

    Raises:
        ModelError: the model has more patches than `keep_indices` can number.
    """
    patches = num_patches(loaded)
    if patches > MAX_PATCHES:
        raise ModelError(f"model {loaded.name!r} has {patches} patches, a dataset can number {MAX_PATCHES}")


def _check_softmax(loaded: LoadedModel) -> None:
    name, count = f"model {loaded.name!r}", len(loaded.class_names)
    if not count:
        raise ModelError(f"{name} has no classifier, it outputs features (num_classes is 0)")
    if count == 1:
        raise ModelError(
            f"{name} has one logit: a softmax over one class is always 1 and says nothing; to make a sigmoid head one "
            "of two classes, put a row of zeros before its own (weights and bias)"
        )
    if _is_embedding(loaded):
        raise ModelError(
            f"{name} has {count} outputs that are no classes: those of an image tower, as CLIP's, are an embedding; "
            "take weights that were trained on classes, or set class_names if these were"
        )
    if problem := _problem(loaded):
        raise ModelError(f"{name} {problem}, not one of {count} classes")


def _is_embedding(loaded: LoadedModel) -> bool:
    """Return whether the outputs are an image tower's embedding: timm has no names for them."""
    if loaded.name.startswith(LOCAL_DIR) or _TOWER.search(loaded.name) is None:
        return False
    own, count = timm.get_pretrained_cfg(loaded.name), len(loaded.class_names)
    nameless = list(loaded.class_names) == [str(index) for index in range(count)]
    return nameless and own is not None and own.num_classes == count


def _problem(loaded: LoadedModel) -> str | None:
    if not loaded.name.startswith(LOCAL_DIR):
        return None
    return describe_problem(read_model_config(loaded.name.removeprefix(LOCAL_DIR)))
