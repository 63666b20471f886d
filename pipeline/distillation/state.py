"""Checkpoints of a training, of a student or with `qat` of a quantized model.

There is a file per epoch and one within it, written atomically, so that each is complete.

They are not Ray Train's own checkpoints, for three reasons, measured or read in the code of Ray 2.60. A report with a
checkpoint waits for the controller's next poll, two seconds, which is longer than an epoch of a small student. Ray
records a checkpoint in a second file after writing it, so a kill between the two loses it. And in-process training
(`workers.size: 0`) keeps none.
"""

import io
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline import storage
from pipeline.errors import CheckpointError, DatasetError, one_line
from pipeline.log import logger
from pipeline.models.pickles import read_own
from pipeline.outputs.names import CHECKPOINTS

# Number of checkpoints that are kept. The one before the latest is for people who want to go back, or whose latest
# checkpoint was damaged.
_KEPT = 2
_GO_BACK = "delete it to go on from the one before it, or from the start"


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a training needs to continue as if it had not been stopped.

    Random numbers derive from seed, epoch and step, and the learning rate from `images_seen`, so neither needs more
    state. Within an epoch, BatchNorm's statistics are those of rank 0.

    Attributes:
        digest: digest of the run that it belongs to.
        epoch: number of epochs done.
        images_seen: number of images read, over all epochs and workers, which decides the learning rate.
        steps: number of optimizer steps.
        student: weights of the model that is trained, after `epoch` epochs or within the next one.
        best: weights of the best epoch.
        best_epoch: number of the best epoch, counted from 1; 0 before the first. With `qat`, the best step.
        best_score: held-out top-1 in percent, or minus the training loss if there are no held-out images. With `qat`,
            minus the divergence on the held-back images (see `HeldBack.measure`), and -inf without any.
        optimizer: state dict of the optimizer.
        best_confusion: (label, predicted class) → number of held-out images, in the best epoch.
        before_top1: held-out top-1 before training, in percent; None without held-out images.
        teacher_top1: held-out top-1 of the teacher, in percent; None without held-out images, and in checkpoints of
            earlier versions.
        teacher_confusion: the same as `best_confusion`, for the teacher.
        history: one row of metrics per epoch. With `qat`, one per step and, with held-back images, one
            from before the training.
        epoch_steps: number of steps done in the next epoch.
        epoch_totals: sums over these steps, in the order of `objective.SUMS`.
        order: text that names what the order of the images depended on, see `StreamedImages`. `epoch_steps` holds only
            in that order.
    """

    digest: str
    epoch: int = 0
    images_seen: int = 0
    steps: int = 0
    student: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_score: float = float("-inf")
    optimizer: dict[str, Any] = field(default_factory=dict)
    before_top1: float | None = None
    best_confusion: dict[tuple[int, int], int] = field(default_factory=dict)
    teacher_top1: float | None = None
    teacher_confusion: dict[tuple[int, int], int] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    epoch_steps: int = 0
    epoch_totals: list[float] = field(default_factory=list)
    order: str = ""


def save_state(output: str, state: TrainingState) -> None:
    """Write a checkpoint, then remove those that are no longer kept.

    Raises:
        DatasetError: it could not be written.
    """
    content = io.BytesIO()
    # Not `asdict`, which would copy every tensor, even those that `student` and `best` share.
    torch.save({name: getattr(state, name) for name in TrainingState.__dataclass_fields__}, content)
    folder = storage.join(output, CHECKPOINTS)
    with storage.writing_to(output):
        storage.write_bytes(storage.join(folder, _name(state.epoch, state.epoch_steps)), content.getvalue())
        places = list_places(output)
        old = [place for place in places if not place[1]][:-_KEPT]
        within = [place for place in places if place[1] and place != (state.epoch, state.epoch_steps)]
        for place in old + within:
            storage.remove(storage.join(folder, _name(*place)))
        # A process that was killed while it wrote leaves temporary files; nobody else writes there.
        storage.remove_temporaries(folder)


def try_to_save(output: str, state: TrainingState, where: str) -> None:
    """Write a checkpoint, or warn: a training can do without one, and the next one may succeed.

    Args:
        output, state: folder of the run and its state, as in `save_state`.
        where: how far the training is, for the warning.
    """
    try:
        save_state(output, state)
    except (DatasetError, OSError) as error:
        logger.warning(f"no checkpoint was written {where}: {one_line(error)}")


def load_state(output: str, digest: str, *, order: str = "", notes: bool = False) -> TrainingState | None:
    """Load the latest checkpoint, with tensors on the CPU; None if there is none.

    Args:
        output: folder of the run.
        digest: digest of the run.
        order: text that names what the order of the images depends on now. A checkpoint within an epoch of another
            order does not count, and the training continues after the last epoch that has a checkpoint.
        notes: whether to log that a checkpoint does not count.

    Raises:
        CheckpointError: the file cannot be read, or is of another run.
    """
    found, skipped = None, ""
    for place in reversed(list_places(output)):
        state = _load(storage.join(output, CHECKPOINTS, _name(*place)), digest)
        if not state.epoch_steps or state.order == order:
            found = state
            break
        skipped = _name(*place)
    if notes and skipped:
        start = "starts over" if found is None else f"continues after epoch {found.epoch}"
        logger.info(
            f"checkpoint {skipped} is not used: its images were read in another order (other workers, another shuffle "
            f"buffer or cache_gb, or an earlier version); the training {start}"
        )
    return found


def _load(uri: str, digest: str) -> TrainingState:
    try:
        state = TrainingState(**read_own(uri, storage.read_bytes(uri)))
    except TypeError as error:
        raise CheckpointError(f"checkpoint {uri!r} cannot be read: {one_line(error)}; {_GO_BACK}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_GO_BACK}") from error
    if state.digest != digest:
        raise CheckpointError(
            f"checkpoint {uri!r} is of run {state.digest[:8]}, not of {digest[:8]}: give another output"
        )
    return state


def last_place(output: str) -> tuple[int, int]:
    """Return (epochs done, steps of the next one) of the last checkpoint; zeros if there is none."""
    return max(list_places(output), default=(0, 0))


def list_places(output: str) -> list[tuple[int, int]]:
    """Return (epochs done, steps of the next one) of each checkpoint, ascending."""
    names = storage.list_files(storage.join(output, CHECKPOINTS), ".pt")
    matches = (re.fullmatch(r"epoch-(\d+)(?:-step-(\d+))?\.pt", name) for name in names)
    return sorted((int(match[1]), int(match[2] or 0)) for match in matches if match)


def _name(epoch: int, steps: int = 0) -> str:
    return f"epoch-{epoch:05d}-step-{steps:08d}.pt" if steps else f"epoch-{epoch:05d}.pt"
