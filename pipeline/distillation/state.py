"""Checkpoints of a training: one file per epoch, written atomically, so that the latest is always complete.

They are not Ray Train's own checkpoints, for three reasons, measured or read in the code of Ray 2.60. A report with a
checkpoint waits for the controller's next poll, two seconds, which is longer than an epoch of a small student. Ray
records a checkpoint in a second file after writing it, so a kill between the two loses it. And in-process training
(`workers.size: 0`) keeps none.
"""

import io
import pickle
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline import storage
from pipeline.errors import CheckpointError
from pipeline.models.checkpoints import refusal_of

FOLDER = "checkpoints"
# The one before the latest is kept for people who want to go back; nothing reads it.
_KEPT = 2


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a training needs to continue as if it had not been stopped.

    Random numbers derive from seed and epoch, and the learning rate from `images_seen`, so neither needs more state.

    Attributes:
        digest: of the run that it belongs to.
        epoch: number of epochs done.
        images_seen: over all epochs and workers; decides the learning rate.
        steps: of the optimizer.
        student: weights after `epoch` epochs.
        best: weights of the best epoch.
        best_epoch: counted from 1; 0 before the first.
        best_score: held-out top-1 in percent, or minus the training loss.
        optimizer: state of the optimizer.
        before_top1: held-out top-1 before training, in percent.
        history: one row of metrics per epoch.
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
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(output: str, state: TrainingState) -> None:
    """Write a checkpoint, then remove those that are no longer kept."""
    content = io.BytesIO()
    # Not `asdict`, which would copy every tensor, even those that `student` and `best` share.
    torch.save({name: getattr(state, name) for name in TrainingState.__dataclass_fields__}, content)
    folder = storage.join(output, FOLDER)
    storage.write_bytes(storage.join(folder, _name(state.epoch)), content.getvalue())
    for epoch in list_epochs(output)[:-_KEPT]:
        storage.remove(storage.join(folder, _name(epoch)))


def load_state(output: str, digest: str) -> TrainingState | None:
    """Load the latest checkpoint, with tensors on the CPU; None if there is none.

    Raises:
        CheckpointError: the file cannot be read, or is of another run.
    """
    epochs = list_epochs(output)
    if not epochs:
        return None
    uri = storage.join(output, FOLDER, _name(epochs[-1]))
    try:
        values = torch.load(io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True)
        state = TrainingState(**values)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {uri!r} {refusal_of(error)}, and was not opened") from error
    except (RuntimeError, EOFError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {uri!r} cannot be read: {str(error).splitlines()[0]}") from error
    if state.digest != digest:
        raise CheckpointError(f"checkpoint {uri!r} is of run {state.digest[:8]}, not of {digest[:8]}")
    return state


def list_epochs(output: str) -> list[int]:
    """Return the epochs that have a checkpoint, ascending."""
    names = storage.list_files(storage.join(output, FOLDER), ".pt")
    matches = (re.fullmatch(r"epoch-(\d+)\.pt", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def _name(epoch: int) -> str:
    return f"epoch-{epoch:05d}.pt"
