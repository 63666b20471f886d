"""View-dependent part of a step: what the teacher sees, and what loss terms may read of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pipeline.inversion.patches import jitter_images, move_patches
from pipeline.inversion.teacher import AnyTeacher
from pipeline.inversion.views import ViewDraws, show_view
from pipeline.vit.ranking import Ranking


@dataclass(frozen=True)
class View:
    """Some of a run's images, and how one step shows them.

    Attributes:
        images: float32 [b, C, H, W], before the jitter.
        keep_indices: int64 [b, K], the patches alive.
        jitter: int64 [b, 3], shift and flip of each image.
        targets: int64 [b], target class of each image.
        draws: how the images are changed before the jitter; None leaves them as they are.
    """

    images: Tensor
    keep_indices: Tensor
    jitter: Tensor
    targets: Tensor
    draws: ViewDraws | None = None

    def part(self, rows: slice) -> "View":
        """Return the view of some of the images."""
        draws = None if self.draws is None else self.draws.part(rows)
        return View(self.images[rows], self.keep_indices[rows], self.jitter[rows], self.targets[rows], draws)

    def changed(self) -> "View":
        """Return the view of images that are changed as drawn."""
        if self.draws is None:
            return self
        return replace(self, images=show_view(self.images, self.draws), draws=None)


class ViewOutput:
    """A view and the teacher's logits for it, given to loss terms.

    Attributes:
        logits: the teacher's logits, float32 [b, classes].
        block_outputs: attention output of each block, [b, K, d]; empty if no term asked for it.
    """

    def __init__(
        self, teacher: AnyTeacher, view: View, *, dtype: str, logits: Tensor, block_outputs: list[Tensor]
    ) -> None:
        self.logits = logits
        self.block_outputs = block_outputs
        self._teacher, self._view, self._dtype = teacher, view, dtype

    @property
    def targets(self) -> Tensor:
        """The classes to invert, int64 [b]."""
        return self._view.targets

    @cached_property
    def jittered(self) -> Tensor:
        """The images [b, C, H, W], shifted and mirrored as the teacher saw them, with the pixels of stopped patches."""
        return jitter_images(self._view.images, self._view.jitter)

    @cached_property
    def filled(self) -> Tensor:
        """The jittered images [b, C, H, W] as they will be stored: stopped patches at the mean color."""
        filled = self._teacher.fill_stopped(self._view.images, self._view.keep_indices)
        return jitter_images(filled, self._view.jitter)

    @cached_property
    def positions(self) -> Tensor:
        """Return the positions in a jittered image of the patches alive, int64 [b, K]."""
        grid, side = self._teacher.grid_size, self._teacher.patch_size
        return move_patches(self._view.keep_indices, self._view.jitter, grid_size=grid, patch_size=side)

    def precision(self) -> torch.autocast:
        """Return the autocast context of the run, for networks of a term's own."""
        return _precision(self._view, self._dtype)


class Viewer:
    """Runs the teacher on the views of a run.

    Args:
        teacher: a teacher as `frozen_copy` returns it.
        dtype: dtype of the teacher's forward and backward pass.
        ranking: how patches are ranked.
        watched: whether a term reads the outputs of the teacher's blocks.

    Attributes:
        look: images, keep_indices, jitter → the teacher's logits [b, classes]; may be replaced by a compiled function.
    """

    def __init__(self, teacher: AnyTeacher, *, dtype: str, ranking: Ranking, watched: bool) -> None:
        self.teacher = teacher
        self.look: Callable[..., Tensor] = teacher.look
        self._dtype, self._watched = dtype, watched
        self._ranking: Ranking = ranking

    def show(self, view: View, scores: list[Tensor] | None = None) -> ViewOutput:
        """Run the teacher on a view.

        Args:
            view: the images to show.
            scores: a list to which the scores [b, K] of the patches are appended; None if they need not be ranked.
        """
        outputs: list[Tensor] = []
        view = view.changed()
        with _precision(view, self._dtype):
            logits = self._watched_logits(view, scores, outputs) if self._watched else self._logits(view, scores)
        return ViewOutput(self.teacher, view, dtype=self._dtype, logits=logits.float(), block_outputs=outputs)

    def _logits(self, view: View, scores: list[Tensor] | None) -> Tensor:
        """Return the teacher's logits [b, classes] of the patches alive, jittered."""
        shown = view.images, view.keep_indices, view.jitter
        if scores is None:
            return self.look(*shown)
        # Too few steps rank patches to be worth compiling.
        logits, scored = self.teacher.look_and_rank(*shown, self._ranking, view.targets)
        scores.append(scored.float())
        return logits

    def _watched_logits(self, view: View, scores: list[Tensor] | None, outputs: list[Tensor]) -> Tensor:
        """Return the logits, and append the attention output of each block to `outputs`."""
        with self.teacher.attention_outputs() as seen:
            logits = self.look(view.images, view.keep_indices, view.jitter)
        outputs.extend(seen)
        if scores is not None:
            # Ranking runs attention, or the whole forward, once more. It gets a pass of its own, so that `outputs` is
            # not filled twice.
            with torch.no_grad():
                self._logits(view, scores)
        return logits


def _precision(view: View, dtype: str) -> torch.autocast:
    return torch.autocast(view.images.device.type, torch.bfloat16, enabled=dtype == "bfloat16")
