"""Training loop of quantization-aware distillation, on a worker."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from statistics import fmean

import torch
from torch import Tensor, nn

from pipeline.distillation.answers import Answers
from pipeline.distillation.batches import DistillationBatch
from pipeline.distillation.descent import Group, backpropagate, touch
from pipeline.distillation.losses import soft_label_loss
from pipeline.distillation.opening import TrainingImages
from pipeline.distillation.schedule import lr_factor
from pipeline.distillation.state import TrainingState, load_state, try_to_save
from pipeline.errors import NonFiniteError
from pipeline.models import weight_digest
from pipeline.quantization.held_back import HeldBack
from pipeline.quantization.learned import LearnedGraph
from pipeline.quantization.qat_config import QatConfig
from pipeline.quantization.variants import Values
from pipeline.workers.checkpoint_timer import CheckpointTimer
from pipeline.workers.progress import Count

# Names of the measurements on held-back images. The best step is the one with the smallest value of the first.
FIGURES = ("divergence", "disagreement")
CRITERION = FIGURES[0]


@dataclass(frozen=True)
class Trained:
    """Result of training a variant.

    Attributes:
        values: values to quantize the model with. With held-back images: those of the best step, or the calibrated ones
            if training gained too little. Without: those of the last step.
        history: a row for each `step`, with its `loss` (mean divergence of the softened answers from the teacher's, in
            nats), and with the result of `HeldBack.measure` where that was measured. With held-back images, step 0 is
            the calibrated model.
        kept_step: step that the values are from; 0 for the calibrated ones.
    """

    values: Values
    history: list[dict[str, float]]
    kept_step: int

    @property
    def losses(self) -> list[float]:
        """Loss of each step."""
        return [row["loss"] for row in self.history if "loss" in row]

    @property
    def first_loss(self) -> float:
        """Mean over the first tenth of the steps."""
        return fmean(self.losses[: self._tenth])

    @property
    def last_loss(self) -> float:
        """Mean over the last tenth of the steps."""
        return fmean(self.losses[-self._tenth :])

    @property
    def before(self) -> dict[str, float] | None:
        """The row of the calibrated model; None without held-back images."""
        return self.history[0] if CRITERION in self.history[0] else None

    @property
    def best(self) -> dict[str, float]:
        """The row of the best step of the training; the last one without held-back images."""
        measured = [row for row in self.history[1:] if CRITERION in row]
        return min(measured, key=lambda row: row[CRITERION]) if measured else self.history[-1]

    @property
    def _tenth(self) -> int:
        return -(-len(self.losses) // 10)


class QatObjective(nn.Module):
    """A quantized model and its loss as one module, so that `DistributedDataParallel` sees the whole forward pass.

    Args:
        graph: the graph to train.
        answers: the frozen teacher, as a function of a batch that returns its logits and, if asked for, its tokens.
        temperature: divisor of both models' logits.
    """

    def __init__(self, graph: LearnedGraph, answers: Answers, temperature: float) -> None:
        super().__init__()
        self.graph = graph
        self._answers, self._temperature = answers, temperature

    def forward(self, batch: DistillationBatch | None) -> Tensor:
        """Return the sum of the loss over the images, and their number: float32 [2]; zeros for None."""
        nothing = touch(self.graph.parameters())
        if batch is None or not len(batch.pixels):
            return torch.zeros(2, device=nothing.device) + nothing
        losses = soft_label_loss(self.graph(batch), self._answers(batch)[0], self._temperature)
        return torch.stack([losses.sum(), losses.new_tensor(len(losses))]) + nothing


class WholeImages:
    """A worker's share of training images, every patch of which is read.

    Args:
        source: the images, perhaps on kept patches.
        num_patches: number of patches of a whole image.
    """

    def __init__(self, source: TrainingImages, num_patches: int) -> None:
        self.order = source.order
        self._source, self._num_patches = source, num_patches

    def batches(self, epoch: int, device: torch.device) -> Iterator[DistillationBatch]:
        """Yield this worker's share of every batch of an epoch."""
        patches = torch.arange(self._num_patches, device=device)
        for batch in self._source.batches(epoch, device):
            keep = patches.expand(len(batch.pixels), -1)
            yield replace(batch, keep_indices=keep, num_kept=torch.full_like(batch.num_kept, self._num_patches))


QatImages = TrainingImages | WholeImages


@dataclass(frozen=True)
class QatCheckpoints:
    """Location of the checkpoints of one variant's training.

    Attributes:
        folder: URI of the folder.
        digest: digest of the run.
    """

    folder: str
    digest: str


class QatTrainer:
    """Train a quantized model on one worker, to answer as the teacher does.

    As in `StudentTrainer`, a step descends the mean over the images of all workers, whatever share each has.

    Args:
        config: settings of the training.
        label: label of the variant, for messages.
        graph: the graph to train, on the device.
        answers: the frozen teacher, as a function of a batch that returns its logits and, if asked for, its tokens.
        images: this worker's share of the images.
        held_back: this worker's share of the images that are not trained on; None without any.
        group: the workers of the training.
        checkpoints: where checkpoints are written, and read to go on from.
        done: function that is called with the number of images of each step.
    """

    def __init__(
        self,
        *,
        config: QatConfig,
        label: str,
        graph: LearnedGraph,
        answers: Answers,
        images: QatImages,
        held_back: HeldBack | None,
        group: Group,
        checkpoints: QatCheckpoints,
        done: Count,
    ) -> None:
        self.config, self.label, self.graph = config, label, graph
        self.images, self.held_back, self.group, self.done = images, held_back, group, done
        self._checkpoints = checkpoints
        own, scales = graph.parameter_groups()
        self.optimizer = torch.optim.AdamW(
            [{"params": own, "peak": config.lr}, {"params": scales, "peak": config.scale_lr}], weight_decay=0.0
        )
        self.parallel = group.wrap(QatObjective(graph, answers, config.temperature))
        self._when = CheckpointTimer(60 * config.checkpoint_minutes, group.noticed)

    def train(self, start: Values) -> Trained:
        """Train from the last checkpoint to the last step.

        Args:
            start: values that the graph was made with, which are kept if training does not help.

        Raises:
            NonFiniteError: the loss, or at the end a parameter, is NaN or infinite; raised on every worker.
            IncompleteError: the weights differ between workers.
        """
        state = self._resume()
        while state.steps < self.config.steps:
            self._train_epoch(state)
        if not all(parameter.isfinite().all() for parameter in self.graph.parameters()):
            raise NonFiniteError(state.steps, f"qat parameter of {self.label}")
        self.group.gather_equal(weight_digest(self.graph))
        if state.epoch_steps:
            # Recorded as the end of an epoch, so that the checkpoint counts with any order of the images.
            state.epoch, state.epoch_steps = state.epoch + 1, 0
            self._save(state)
        history = [self._in_nats(row) for row in state.history]
        if self.held_back is None:
            return Trained(self.graph.values(), history, state.steps)
        if not self._helped(state):
            return Trained(start, history, 0)
        self.graph.load_state_dict(state.best)
        return Trained(self.graph.values(), history, state.best_epoch)

    def _in_nats(self, row: dict[str, float]) -> dict[str, float]:
        """Return a row with the divergence that a step has descended, without the factor T² of its gradient."""
        return row | {"loss": row["loss"] / self.config.temperature**2} if "loss" in row else row

    def _helped(self, state: TrainingState) -> bool:
        """Return whether training reduced the divergence by at least `min_gain`."""
        return -state.best_score < (1 - self.config.min_gain) * state.history[0][CRITERION]

    def _resume(self) -> TrainingState:
        where = self._checkpoints
        state = load_state(where.folder, where.digest, order=self.images.order, notes=self.group.rank == 0)
        if state is None:
            state = TrainingState(digest=where.digest, student={})
            if self.held_back is not None:
                state.history.append({"step": 0, **self.held_back.measure(self.graph)})
            return state
        self.graph.load_state_dict(state.student)
        self.optimizer.load_state_dict(state.optimizer)
        return state

    def _train_epoch(self, state: TrainingState) -> None:
        """Train on all images once, or on those that a checkpoint left, up to the last step."""
        with closing(self.images.batches(state.epoch, self.group.device)) as own:  # type: ignore[type-var]
            for batch in islice(chain(own, repeat(None)), state.epoch_steps, None):
                if not self._step(batch, state):
                    break
                if state.steps % self.config.score_every == 0 or state.steps == self.config.steps:
                    self._measure(state)
                if state.steps == self.config.steps:
                    return
                if self._when.is_due():
                    self._save(state)
        state.epoch, state.epoch_steps = state.epoch + 1, 0

    def _step(self, batch: DistillationBatch | None, state: TrainingState) -> bool:
        """Take one step over the shares of all workers; return whether any of them had an image."""
        factor = lr_factor(state.steps / self.config.steps, warmup=0.0, shape="cosine")
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        self.optimizer.zero_grad()
        sums = backpropagate(self.parallel, batch, self.graph.parameters(), self.group, self._when, loss=0)
        total, count = sums.tolist()
        if count == 0:
            return False
        if not math.isfinite(total):
            raise NonFiniteError(state.steps, f"qat loss of {self.label}")
        self.optimizer.step()
        state.steps, state.epoch_steps = state.steps + 1, state.epoch_steps + 1
        state.history.append({"step": state.steps, "loss": total / count})
        self.done(0 if batch is None else len(batch.pixels))
        return True

    def _measure(self, state: TrainingState) -> None:
        if self.held_back is None:
            return
        figures = self.held_back.measure(self.graph)
        state.history[-1] |= figures
        if -figures[CRITERION] > state.best_score:
            state.best, state.best_epoch, state.best_score = self._weights(), state.steps, -figures[CRITERION]

    def _save(self, state: TrainingState) -> None:
        """Save a checkpoint on rank 0; it holds what all workers have done."""
        if self.group.rank == 0:
            state.student, state.optimizer, state.order = (
                self._weights(),
                self.optimizer.state_dict(),
                self.images.order,
            )
            try_to_save(self._checkpoints.folder, state, f"of {self.label}, step {state.steps}")
        self._when.saved()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.graph.state_dict().items()}
