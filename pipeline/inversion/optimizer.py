"""The optimizer of the images, which changes pixels or cosine coefficients."""

from typing import Any

import torch
from torch import Tensor

from pipeline.inversion.basis import CosineBasis
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.teacher import AnyTeacher

# Largest number of pixels that the fused Adam takes at once on a CPU. It rounds those that are left over differently.
_ADAM_WIDTH = 16


class ImageOptimizer:
    """Take steps of Adam on images, and keep their pixels in the valid range.

    Args:
        start: starting images [B, C, H, W] in normalized space.
        teacher: the teacher, which knows the valid range of pixels.
        config: learning rate, betas and basis.

    Attributes:
        images: float32 [b, C, H, W], a leaf; `step` reads its `.grad` and changes it in place.
    """

    def __init__(self, start: Tensor, teacher: AnyTeacher, config: InversionConfig) -> None:
        self._low, self._high = teacher.low, teacher.high
        self._basis: CosineBasis | None = None
        self.images = self._changed = start.requires_grad_()
        if config.basis == "cosine":
            shape = start.shape[1:3]
            self._basis = CosineBasis(*shape, falloff=config.falloff, device=start.device)
            self._changed = self._basis.analyze(start.detach()).requires_grad_()
        # The fused Adam takes one pass over the pixels. It is used only if an image's new pixels do not depend on the
        # image's place in the batch.
        fused = start.device.type == "cuda" or start[0].numel() % _ADAM_WIDTH == 0
        self._adam = torch.optim.Adam([self._changed], lr=config.lr, betas=config.betas, fused=fused)

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that is kept from one step to the next."""
        moments = [value for value in self._adam.state[self._changed].values() if value.ndim]
        return [self.images, *([] if self._basis is None else [self._changed]), *moments]

    def zero_grad(self) -> None:
        """Drop the gradient of the last step."""
        self.images.grad = self._changed.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take a step along the gradient of the images."""
        if self._basis is not None:
            assert self.images.grad is not None
            self._changed.grad = self._basis.pull_back(self.images.grad)
        self._adam.step()
        if self._basis is not None:
            # Coefficients have no range: the gradient passes through the clamp.
            self.images.copy_(self._basis.render(self._changed))
        self.images.clamp_(self._low, self._high)

    def keep(self, rows: Tensor) -> None:
        """Keep the images at these rows of the batch, int64 [b], and drop the others."""
        state = self._adam.state.pop(self._changed)
        kept = self._changed.detach()[rows].requires_grad_()
        self.images = kept if self._basis is None else self.images.detach()[rows].requires_grad_()
        self._changed = kept
        self._adam.param_groups[0]["params"] = [kept]
        self._adam.state[kept] = {name: value[rows] if value.ndim else value for name, value in state.items()}

    def state(self) -> dict[str, Any]:
        """Return what `load_state` takes, not copied: images, what Adam changes, and Adam's state (none at first)."""
        changed = None if self._basis is None else self._changed.detach()
        return {"images": self.images.detach(), "changed": changed, "adam": dict(self._adam.state[self._changed])}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. All of its tensors must be on the device of the images."""
        self._adam.state.pop(self._changed, None)
        self.images = state["images"].requires_grad_()
        self._changed = self.images if self._basis is None else state["changed"].requires_grad_()
        self._adam.param_groups[0]["params"] = [self._changed]
        if state["adam"]:
            self._adam.state[self._changed] = state["adam"]
