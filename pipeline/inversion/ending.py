"""Adaptive end: which images of a run need no further steps."""

import torch
from torch import Tensor

from pipeline.inversion.config import AdaptiveEnd


class Ending:
    """Watches the teacher's confidence in each image of a batch, step by step.

    An image may end once its target had the wanted probability in every view of `hold_steps` steps, the last of which
    shows it as it is. Counting stays on the device: the host looks at those last steps alone.

    Args:
        config: what is wanted.
        first_step: steps before it do not count, patches were still being stopped then.
        num_steps: of the whole run.
        batch: images.
        device: theirs.

    Attributes:
        still_steps: the steps that are to show images as they are, in order.
    """

    def __init__(
        self, config: AdaptiveEnd, *, first_step: int, num_steps: int, batch: int, device: torch.device
    ) -> None:
        self.config = config
        self.first_step = first_step
        self.still_steps = range(first_step + config.hold_steps - 1, num_steps, config.hold_steps)
        self._held = torch.zeros(batch, dtype=torch.int64, device=device)

    def watch(self, step: int, class_losses: Tensor) -> Tensor | None:
        """Take in a step's class losses [b] of the images still in the batch.

        Returns:
            Which of them may end, bool [b]; None at a step that decides nothing. Those are then to be dropped (`keep`).
        """
        if step < self.first_step:
            return None
        confident = torch.exp(-class_losses) >= self.config.confidence
        self._held = torch.where(confident, self._held + 1, 0)
        return self._held >= self.config.hold_steps if step in self.still_steps else None

    def keep(self, rows: Tensor) -> None:
        """Go on with those rows of the batch alone, int64 [b]."""
        self._held = self._held[rows]
