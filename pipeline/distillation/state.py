"""Checkpoints of a training: one file per epoch, which exists wholly or not at all, so the latest is always whole.

They lie beside Ray Train's own files and not in its reports, for three reasons that were measured or read with Ray
2.60: a report with a checkpoint waits for the controller's next look, two seconds, which is more than an epoch of a
small student takes; Ray records a checkpoint in a second file after it is written, so that a kill between the two
forgets it; and in-process training (`workers.size: 0`) keeps none.
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
# The one before the latest stays for a person who wants to go back; nothing reads it.
_KEPT = 2


@dataclass(kw_only=True)
class TrainingState:
    """All that a training needs to go on as if it had not been stopped.

    Random numbers derive from seed and epoch, and the learning rate from `images_seen`: neither has more state.

    Attributes:
        digest: of the run it belongs to.
        epoch: epochs done.
        images_seen: over all epochs and workers; what the schedule goes by.
        steps: of the optimizer.
        student: weights after `epoch` epochs.
        best: weights of the best epoch.
        best_epoch: counted from 1; 0 before the first.
        best_score: held-out top-1 in percent, or minus the training loss.
        optimizer: its state.
        before_top1: held-out top-1 before training, in percent.
        history: a row of metrics an epoch.
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
    # Not `asdict`, which copies every tensor, and with it the storage that `student` and `best` may share.
    torch.save({name: getattr(state, name) for name in TrainingState.__dataclass_fields__}, content)
    folder = storage.join(output, FOLDER)
    storage.write_bytes(storage.join(folder, _name(state.epoch)), content.getvalue())
    for epoch in list_epochs(output)[:-_KEPT]:
        storage.remove(storage.join(folder, _name(epoch)))


def load_state(output: str, digest: str) -> TrainingState | None:
    """The latest checkpoint, with tensors on the CPU; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or is of another run.
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
    """Epochs that there is a checkpoint of, rising."""
    names = storage.list_files(storage.join(output, FOLDER), ".pt")
    matches = (re.fullmatch(r"epoch-(\d+)\.pt", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def _name(epoch: int) -> str:
    return f"epoch-{epoch:05d}.pt"
