"""Adaptive end: which images of a run need no further steps."""

import torch
from torch import Tensor

from pipeline.inversion.config import AdaptiveEnd


class Ending:
    """Track the teacher's confidence in each image of a batch, step by step.

    An image may end once its target reached the wanted probability at `hold_steps` steps in a row, the last of them
    without jitter. Counts stay on the device; the host reads them at those last steps alone.

    Args:
        config: the confidence and the number of steps.
        first_step: the first step that counts; before it patches are still being stopped.
        num_steps: of the whole run.
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
        """Count the class losses [b] of a step, of the images still in the batch.

        Returns:
            Which of them may end, bool [b]; None at a step at which none can. The caller then drops them with `keep`.
        """
        if step < self.first_step:
            return None
        confident = torch.exp(-class_losses) >= self.config.confidence
        self._held = torch.where(confident, self._held + 1, 0)
        return self._held >= self.config.hold_steps if step in self.still_steps else None

    def keep(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, int64 [b], and drop the others."""
        self._held = self._held[rows]
