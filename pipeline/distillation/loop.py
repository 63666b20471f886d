"""Training loop of a worker."""

import json
import math
import time
from collections.abc import Iterator
from itertools import chain, repeat

import torch
from torch import Tensor

from pipeline import storage
from pipeline.distillation.answers import Answers
from pipeline.distillation.batches import DistillationBatch
from pipeline.distillation.config import DistillationConfig
from pipeline.distillation.descent import Group, backpropagate
from pipeline.distillation.objective import SUMS, TERMS, DistillationObjective
from pipeline.distillation.opening import ImageSource, TrainingImages
from pipeline.distillation.schedule import lr_factor, make_optimizer
from pipeline.distillation.scoring import HeldOutScore, score_held_out
from pipeline.distillation.state import TrainingState, load_state, save_state, try_to_save
from pipeline.distillation.students import Student
from pipeline.errors import IncompleteError, NonFiniteError
from pipeline.hashing import hash_number
from pipeline.models import weight_digest
from pipeline.outputs.names import METRICS
from pipeline.workers.checkpoint_timer import CheckpointTimer


class StudentTrainer:
    """Train a student on one worker.

    The gradient of a step is the mean over the images of all workers, whatever share each worker has: a worker that has
    run out of images adds zeros until all have. So the weights stay equal on all workers, and the loss does not depend
    on their number, unless the student has BatchNorm, which normalizes over the share of a worker.

    Args:
        config: settings of the distillation.
        digest: digest of the run.
        student: the student, on the CPU.
        answers: the frozen teacher, as a function of a batch that returns its logits and, if asked for, its tokens.
        images: this worker's share of the training images.
        labeled: this worker's share of the held-out images; None without any.
        group: the workers that train together.
    """

    def __init__(
        self,
        *,
        config: DistillationConfig,
        digest: str,
        student: Student,
        answers: Answers,
        images: TrainingImages,
        labeled: ImageSource | None,
        group: Group,
    ) -> None:
        self.config, self.digest, self.group = config, digest, group
        self.student = student.to(group.device)
        self.images, self.labeled = images, labeled
        self.optimizer = make_optimizer(student.trained_parameters(), config)
        self.objective = DistillationObjective(config, self.student, answers)
        self.parallel = group.wrap(self.objective)
        self._mid_epoch = CheckpointTimer(60 * config.checkpoint_minutes, group.noticed)

    def train(self) -> list[str]:
        """Train from the last checkpoint to the last epoch.

        Returns:
            SHA-256 of the student's weights on each worker.

        Raises:
            NonFiniteError: the loss became NaN or infinite; raised on every worker at the same step.
            IncompleteError: an epoch did not read every image once, or the weights differ between workers.
        """
        state = self._resume()
        while state.epoch < self.config.epochs:
            started = time.monotonic()
            metrics = self._train_epoch(state)
            self._finish_epoch(state, metrics, time.monotonic() - started)
        return self.group.gather_equal(weight_digest(self.student.model))

    def _resume(self) -> TrainingState:
        state = load_state(self.config.output, self.digest, order=self.images.order, notes=self.group.rank == 0)
        if state is None:
            state = TrainingState(digest=self.digest, student=self._weights())
            if (before := self._score()) is not None:
                state.before_top1 = before.top1
        else:
            self.student.model.load_state_dict(state.student)
            self.optimizer.load_state_dict(state.optimizer)
        # Checkpoints of earlier versions do not have the teacher's score.
        if state.teacher_top1 is None and (of_teacher := self._score_teacher()) is not None:
            state.teacher_top1, state.teacher_confusion = of_teacher.top1, of_teacher.confusion
        return state

    def _train_epoch(self, state: TrainingState) -> dict[str, float]:
        """Train on all images once, or on those that a checkpoint within the epoch left; return means over all."""
        self.student.train()
        done = state.epoch_steps
        totals = torch.zeros(len(SUMS), dtype=torch.float64)
        if done:
            totals += _totals(state.epoch_totals)
        checksum = torch.zeros(1, dtype=torch.int64, device=self.group.device)
        batches: Iterator[DistillationBatch | None] = chain(
            self.images.batches(state.epoch, self.group.device), repeat(None)
        )
        for step, batch in enumerate(batches):
            if batch is not None:
                checksum += sum(map(_hash, batch.image_ids))
            if step < done:
                continue
            # Seeds dropout and drop path: different for each step and worker, and the same after a restart.
            torch.manual_seed(_hash(f"{self.config.seed} {state.epoch} {step} {self.group.rank}"))
            sums = self._step(batch, state)
            if sums is None:
                break
            totals += sums
            self._save_within_epoch(state, step + 1, totals)
        state.epoch_steps, state.epoch_totals = 0, []
        images = round(totals[-1].item())
        if images != self.images.num_images:
            raise IncompleteError(f"epoch {state.epoch + 1} read {images} images of {self.images.num_images}")
        return {**self._means(totals), "images": images, "image_ids_checksum": int(self.group.sum(checksum).item())}

    def _means(self, totals: Tensor) -> dict[str, float]:
        """Return the mean of each term over the images; for `labels`, over those with a label, with their number."""
        sums = dict(zip(SUMS, totals.tolist(), strict=True))
        labeled = round(sums["labeled"])
        means = {name: sums[name] / sums["images"] for name in TERMS} | {"labels": sums["labels"] / max(labeled, 1)}
        return means | ({"labeled": labeled} if self.config.label_weight else {})

    def _step(self, batch: DistillationBatch | None, state: TrainingState) -> Tensor | None:
        """Take one step over the shares of all workers.

        Returns:
            `SUMS`, float64 on the CPU; None if no worker had an image.
        """
        self.optimizer.zero_grad()
        parameters, loss = self.student.trained_parameters(), TERMS.index("loss")
        sums = backpropagate(self.parallel, batch, parameters, self.group, self._mid_epoch, loss=loss)
        count = sums[-1].item()
        if count == 0:
            return None
        if not math.isfinite(sums[loss].item()):
            raise NonFiniteError(state.steps, "distillation loss")
        self._set_lr(state.images_seen + count / 2)
        self.optimizer.step()
        state.images_seen += round(count)
        state.steps += 1
        return sums

    def _save_within_epoch(self, state: TrainingState, steps: int, totals: Tensor) -> None:
        """Save a checkpoint on rank 0 if one is due; it holds what all workers have done."""
        if self.group.rank or not self._mid_epoch.is_due():
            return
        state.student = self._weights()
        state.epoch_steps, state.epoch_totals, state.order = steps, totals.tolist(), self.images.order
        state.optimizer = self.optimizer.state_dict()
        try_to_save(self.config.output, state, f"in epoch {state.epoch + 1}")
        self._mid_epoch.saved()

    def _set_lr(self, images_seen: float) -> None:
        total = self.config.epochs * self.images.num_images
        warmup = self.config.warmup_epochs / self.config.epochs
        factor = lr_factor(images_seen / total, warmup=warmup, shape=self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor

    def _finish_epoch(self, state: TrainingState, metrics: dict[str, float], seconds: float) -> None:
        self._average_buffers()
        state.epoch += 1
        state.student = self._weights()
        last = state.epoch == self.config.epochs
        scored = self.labeled is None or last or state.epoch % self.config.score_every == 0
        held_out = self._score() if scored else None
        score = -metrics["loss"] if held_out is None else held_out.top1
        if scored and score > state.best_score:
            state.best, state.best_epoch, state.best_score = state.student, state.epoch, score
            state.best_confusion = {} if held_out is None else held_out.confusion
        lr = self.optimizer.param_groups[0]["lr"]
        row = {
            "epoch": state.epoch,
            **metrics,
            "lr": lr,
            "seconds": round(seconds, 3),
            "workers": self.group.world_size,
        }
        state.history.append(row if held_out is None else {**row, "top1": held_out.top1})
        if self.group.rank:
            return
        write_metrics(self.config.output, state)
        if last or state.epoch % self.config.checkpoint_every == 0:
            state.optimizer = self.optimizer.state_dict()
            save_state(self.config.output, state)
            self._mid_epoch.saved()

    def _average_buffers(self) -> None:
        """Average BatchNorm statistics: each worker saw other images and, if streamed, perhaps fewer batches."""
        for buffer in self.student.model.buffers():
            if self.group.world_size > 1:
                total = self.group.sum(buffer.clone())
                mean = total / self.group.world_size
                buffer.copy_(mean if buffer.is_floating_point() else mean.round())

    def _score(self) -> HeldOutScore | None:
        """Score the student on the held-out images; None if there are none.

        In float32, as the student is saved, whatever type it is trained in.
        """
        if self.labeled is None:
            return None
        self.student.eval()
        return score_held_out(
            lambda batch: self.objective.read(batch, torch.float32)[0], self.labeled, self.group, "the student"
        )

    def _score_teacher(self) -> HeldOutScore | None:
        """Score the teacher on the held-out images, in float32; None if there are none."""
        if self.labeled is None:
            return None
        answers = Answers(self.objective.answers.teacher, with_tokens=False, dtype=torch.float32)
        return score_held_out(lambda batch: answers(batch)[0], self.labeled, self.group, "the teacher")

    def _weights(self) -> dict[str, Tensor]:
        """Return a copy of the student's weights, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.student.model.state_dict().items()}


def write_metrics(output: str, state: TrainingState) -> None:
    """Write one JSON line per epoch. Object stores cannot append, so the whole file is rewritten.

    Raises:
        DatasetError: it could not be written.
    """
    lines = "".join(json.dumps(row) + "\n" for row in state.history)
    with storage.writing_to(output):
        storage.write_bytes(storage.join(output, METRICS), lines.encode())


def _totals(saved: list[float]) -> Tensor:
    """Return the sums of a checkpoint; earlier versions counted every image as one with a label."""
    return torch.tensor(saved if len(saved) == len(SUMS) else [*saved, saved[-1]], dtype=torch.float64)


def _hash(text: str) -> int:
    """Return a hash of 40 bits, so that the sum over an epoch's image ids fits; it identifies the set of images."""
    return hash_number(text, 5)
