"""Check on the driver that a teacher is an image classifier, before any work."""

from collections.abc import Iterable

from pipeline.dataset.schema import CHANNELS, MAX_PATCHES
from pipeline.errors import ModelError
from pipeline.log import logger
from pipeline.models import LOCAL_DIR, LoadedModel
from pipeline.models.folders import describe_problem, read_model_config
from pipeline.models.image_reader import num_patches
from pipeline.models.loading import describe_channels
from pipeline.trial import try_out


def check_teacher(loaded: LoadedModel, *, classes: bool = True, stored: bool = False) -> None:
    """Refuse a teacher that a job could work with for hours and make nothing useful of.

    Args:
        loaded: the teacher.
        classes: its output is read as a softmax over its classes, as everywhere but in calibration without scores.
        stored: its images are to be stored as the dataset contract says.

    Raises:
        ModelError: it has another number of channels than pictures have, too many patches to store, no classifier, one
            logit, or answers two trial images with anything else than one logit for each class.
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
    """Refuse a model that reads other channels than pictures have.

    Raises:
        ModelError: with the number of its channels.
    """
    channels = loaded.input_size[0]
    if channels not in CHANNELS:
        raise ModelError(describe_channels(loaded.name, channels))


def check_stored(loaded: LoadedModel) -> None:
    """Refuse a model whose images the dataset contract cannot hold.

    Raises:
        ModelError: it has more patches than `keep_indices` can number.
    """
    patches = num_patches(loaded)
    if patches > MAX_PATCHES:
        raise ModelError(f"model {loaded.name!r} has {patches} patches, a dataset can number {MAX_PATCHES}")


def announce(notices: Iterable[str]) -> None:
    """Print on standard error what a user should know at once, a line each."""
    for notice in notices:
        logger.info(f"note: {notice}")


def _check_softmax(loaded: LoadedModel) -> None:
    name, count = f"model {loaded.name!r}", len(loaded.class_names)
    if not count:
        raise ModelError(f"{name} has no classifier, it answers with features (num_classes is 0)")
    if count == 1:
        raise ModelError(
            f"{name} has one logit: a softmax over one class is always 1, so that nothing can be told from it; a "
            "sigmoid head becomes one of two classes with a row of zeros before its own (weights and bias)"
        )
    if problem := _problem(loaded):
        raise ModelError(f"{name} {problem}, not with one of {count} classes")


def _problem(loaded: LoadedModel) -> str | None:
    if not loaded.name.startswith(LOCAL_DIR):
        return None
    return describe_problem(read_model_config(loaded.name.removeprefix(LOCAL_DIR)))
