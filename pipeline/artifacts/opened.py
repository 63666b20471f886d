"""Open an artifact of any format, and fit its inputs and outputs to a teacher's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.artifacts.facts import Facts, class_columns
from pipeline.errors import CheckpointError, one_line
from pipeline.log import logger
from pipeline.models import LoadedModel

# Normalized images float32 [B, C, H, W] on the CPU → logits float32 [B, classes] on the CPU.
Predictor = Callable[[Tensor], Tensor]
# Errors that a model may raise if it does not take the images that it is given.
_MISFIT = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)


@dataclass(frozen=True)
class Opened:
    """An artifact that can be run: called with any number of images, float32 [B, C, H, W], it returns their logits.

    Attributes:
        predict: function of images in the artifact's own normalization.
        facts: class names and normalization that the file states.
        input_size: channels, height and width of the images that it reads; None if it reads any.
        batch_size: the only number of images that it reads at once; None if it reads any number.
    """

    predict: Predictor
    facts: Facts
    input_size: tuple[int | str | None, ...] | None = None
    batch_size: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, classes], of images in the artifact's own normalization (`facts.mean`, `.std`).

        Raises:
            CheckpointError: the images are not a batch, or not of the size that the artifact reads.
        """
        size = self.input_size
        if images.ndim != 4 or (size is not None and tuple(images.shape[1:]) != size):
            wanted = ["batch", *(size or ("channels", "height", "width"))]
            raise CheckpointError(f"the artifact reads images of {wanted}, not {list(images.shape)}")
        return self.in_any_number()(images)

    def in_any_number(self) -> Predictor:
        """Return the predictor of any number of images."""
        return self.predict if self.batch_size is None else _in_batches(self.predict, self.batch_size)


def fit_to_teacher(opened: Opened, uri: str, teacher: LoadedModel) -> Predictor:
    """Return a predictor of images in the teacher's normalization with the teacher's classes in the teacher's order.

    One gray image is read, so that an artifact that does not fit is refused before any work. Where classes are put in
    another order, or names cannot be compared, a line on standard error says so.

    Raises:
        CheckpointError: the artifact reads images of another size, has other classes, or cannot be run.
    """
    size, num_classes = teacher.input_size, len(teacher.class_names)
    _check_normalization(opened.facts, uri, size[0])
    if opened.input_size is not None and tuple(opened.input_size) != size:
        raise CheckpointError(f"{uri!r} reads images of {list(opened.input_size)}, the teacher's are {list(size)}")
    predict = _renormalized(opened.in_any_number(), teacher, opened.facts)
    count = _count_classes(predict, uri, size)
    own, wanted = opened.facts.class_names, Facts.of(teacher).class_names
    if own is not None and len(own) != count:
        raise CheckpointError(f"{uri!r} gives {count} logits for its {len(own)} class names")
    columns = class_columns(own, wanted, num_classes, uri)
    if count != num_classes:
        raise CheckpointError(f"{uri!r} has {count} classes, the teacher has {num_classes}")
    if wanted is None and own is not None:
        logger.warning(f"{uri}: its class names were not checked, because the teacher has none")
    if wanted is not None and own is None:
        logger.warning(f"{uri}: it has no class names; its classes are assumed to be in the teacher's order")
    if columns == list(range(num_classes)):
        return predict
    logger.info(f"{uri}: its classes were reordered by name to match the teacher's")
    order = torch.tensor(columns)
    return lambda images: predict(images)[:, order]


def _count_classes(predict: Predictor, uri: str, size: tuple[int, int, int]) -> int:
    try:
        logits = predict(torch.zeros(1, *size))
    except _MISFIT as error:
        raise CheckpointError(f"{uri!r} cannot read the teacher's images {list(size)}: {one_line(error)}") from error
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if isinstance(logits, Tensor) and not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise CheckpointError(f"{uri!r} gives {kind}, as numbers of classes are, not logits")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        raise CheckpointError(f"{uri!r} gives {shape} for one image, not one row of logits")
    return logits.shape[1]


def _check_normalization(own: Facts, uri: str, channels: int) -> None:
    for name, values in (("mean", own.mean), ("std", own.std)):
        if values is not None and len(values) != channels:
            raise CheckpointError(f"{uri!r}: its {name} has {len(values)} values, the images have {channels} channels")


def _renormalized(predict: Predictor, teacher: LoadedModel, own: Facts) -> Predictor:
    """Return a predictor that takes images in the teacher's normalization."""
    if own.mean is None or own.std is None or (teacher.mean, teacher.std) == (own.mean, own.std):
        return predict
    (mean, std), (own_mean, own_std) = (
        torch.tensor(pair).view(2, -1, 1, 1) for pair in ((teacher.mean, teacher.std), (own.mean, own.std))
    )
    return lambda images: predict((images * std + mean - own_mean) / own_std)


def _in_batches(predict: Predictor, size: int) -> Predictor:
    """Return a predictor of any number of images from one that takes `size` of them at once."""

    def predict_all(images: Tensor) -> Tensor:
        padding = images[:1].expand(-len(images) % size, *images.shape[1:])
        parts = torch.cat([images, padding]).split(size)
        return torch.cat([predict(part.contiguous()) for part in parts])[: len(images)]

    return predict_all
