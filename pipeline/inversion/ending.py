"""Adaptive end: which images of a run need no further steps, and those that have ended."""

from typing import Any

import torch
from torch import Tensor

from pipeline.inversion.config import AdaptiveEnd
from pipeline.inversion.result import Harvest


class ConfidenceTracker:
    """Track the teacher's confidence in each image of a batch, step by step.

    An image may end once its target reached the wanted probability at `hold_steps` steps in a row, the last of them
    without jitter. Counts stay on the device; the host reads them at those last steps alone.

    Args:
        config: the probability to reach, and the number of consecutive steps that must reach it.
        first_step: the first step that counts. Before it, patches are still being stopped.
        num_steps: number of steps of the whole run.
        batch: number of images.
        device: device of the images.

    Attributes:
        still_steps: the steps that are to show images without jitter, in order.
    """

    def __init__(
        self, config: AdaptiveEnd, *, first_step: int, num_steps: int, batch: int, device: torch.device
    ) -> None:
        self.config = config
        self.first_step = first_step
        self.still_steps = range(first_step + config.hold_steps - 1, num_steps, config.hold_steps)
        self._held = torch.zeros(batch, dtype=torch.int64, device=device)

    def watch(self, step: int, class_losses: Tensor) -> Tensor | None:
        """Count one more step for the images still in the batch, given their class losses [b].

        Returns:
            Which of the images may end, bool [b]; None at a step at which no image can. The caller drops those that end
            with `keep`.
        """
        if step < self.first_step:
            return None
        confident = torch.exp(-class_losses) >= self.config.confidence
        self._held = torch.where(confident, self._held + 1, 0)
        return self._held >= self.config.hold_steps if step in self.still_steps else None

    def keep(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, int64 [b], and drop the others."""
        self._held = self._held[rows]

    def state(self) -> Tensor:
        """Return what `load_state` takes, not copied."""
        return self._held

    def load_state(self, held: Tensor) -> None:
        """Go on with the counts of the images that are left."""
        self._held = held


class EndedImages:
    """Images of a run that have ended, as the teacher last saw them, and the places of the others in the batch.

    Args:
        batch: number of images at the start.
        num_steps: number of steps of the whole run.
        device: device of the images.

    Attributes:
        rows: int64 [b], places that the images which go on had in the batch at the start.
        steps: int64 [B], on the CPU: number of steps that each image takes.
    """

    def __init__(self, batch: int, num_steps: int, device: torch.device) -> None:
        self.rows = torch.arange(batch, device=device)
        self.steps = torch.full((batch,), num_steps)
        self._last: Harvest | None = None

    def add(self, ended: Tensor, seen: Harvest, steps: int) -> None:
        """Put aside images that end.

        Args:
            ended: bool [b]: which of the images that were still in the batch end now.
            seen: the images that were still in the batch, with their patches, as the teacher last saw them.
            steps: number of steps that these images have taken.
        """
        if self._last is None:
            self._last = Harvest(seen.images.clone(), seen.keep_indices.clone())
        rows = self.rows[ended]
        self._last.images[rows] = seen.images[ended]
        self._last.keep_indices[rows] = seen.keep_indices[ended]
        self.steps[rows.cpu()] = steps

    def keep(self, rows: Tensor) -> None:
        """Go on with the given rows of the batch, int64 [b]."""
        self.rows = self.rows[rows]

    def with_others(self, going: Harvest) -> Harvest:
        """Return all images of the run, in the order of the start, given those that go on."""
        if self._last is None:
            return going
        images, keep_indices = self._last.images.clone(), self._last.keep_indices.clone()
        images[self.rows], keep_indices[self.rows] = going.images, going.keep_indices
        return Harvest(images, keep_indices)

    def state(self) -> dict[str, Any]:
        """Return what `load_state` takes, not copied."""
        last = None if self._last is None else (self._last.images, self._last.keep_indices)
        return {"rows": self.rows, "steps": self.steps, "last": last}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.rows, self.steps = state["rows"], state["steps"].cpu()
        self._last = None if state["last"] is None else Harvest(*state["last"])
