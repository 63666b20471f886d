"""Plain inversion as published, for comparison with the engine.

Written from the description of the published implementation (Hu et al., ICML 2024), not from its code: every patch is
embedded and most are dropped behind the embedding; attention is formed and every block's matrix kept; the backward pass
computes the teacher's weight gradients too; all in fp32; losses are read by the host at every step; where a kept patch
lies in the jittered image is found by comparing all pairs of numbers. Nothing else uses it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainInversion:
    """Steps of the published inversion on a timm ViT with a CLS token.

    Args:
        model: on the device to run on; its weights ask for gradients, as they do where nobody thinks of it.
        targets: classes, int64 [B].
        alive: patches kept in each image, the first of them; None for all.
        seed: of the start and the jitter.
    """

    def __init__(self, model: nn.Module, targets: Tensor, *, alive: int | None = None, seed: int = 0) -> None:
        self.model: Any = model.eval().requires_grad_(True)
        self.device = next(model.parameters()).device
        self.targets = targets.to(self.device)
        self.size: int = self.model.patch_embed.img_size[0]
        self.grid: int = self.model.patch_embed.grid_size[0]
        self.random = torch.Generator().manual_seed(seed)
        start = torch.randn(len(targets), 3, self.size, self.size, generator=self.random)
        self.images = start.to(self.device).requires_grad_()
        count = self.grid**2 if alive is None else alive
        self.keep_indices = torch.arange(count, device=self.device).expand(len(targets), -1)
        self.optimizer = torch.optim.Adam([self.images], lr=0.25, betas=(0.5, 0.99))
        self.attention: list[Tensor] = []
        for block in self.model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda _module, _args, matrix: self.attention.append(matrix))

    def step(self) -> float:
        """One step; returns the loss."""
        self.attention.clear()
        self.optimizer.zero_grad()
        self.model.zero_grad()
        view, positions = self._jitter()
        loss = F.cross_entropy(self._logits(view, positions), self.targets) + 1e-4 * _total_variation(self.images)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.images.clamp_(-2.0, 2.0)
        return loss.item()

    def _jitter(self) -> tuple[Tensor, Tensor]:
        """The images rolled and flipped, one draw for all; and where their kept patches lie in them [B, K]."""
        dy, dx = torch.randint(-self.size // 8, self.size // 8 + 1, (2,), generator=self.random).tolist()
        view = torch.roll(self.images, (dy, dx), dims=(2, 3))
        numbers = torch.arange(self.grid**2, device=self.device).view(self.grid, self.grid)
        patch = self.size // self.grid
        numbers = torch.roll(numbers, (round(dy / patch), round(dx / patch)), dims=(0, 1))
        if torch.rand(1, generator=self.random) < 0.5:
            view, numbers = view.flip(3), numbers.flip(1)
        pairs = numbers.flatten().view(1, 1, -1) == self.keep_indices.unsqueeze(-1)
        return view, pairs.nonzero()[:, 2].view(len(view), -1)

    def _logits(self, view: Tensor, positions: Tensor) -> Tensor:
        model, prefix = self.model, self.model.num_prefix_tokens
        tokens = model._pos_embed(model.patch_embed(view))
        index = positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, index)], dim=1)
        return model.forward_head(model.norm(model.blocks(model.norm_pre(tokens))))


def _total_variation(images: Tensor) -> Tensor:
    """L2, over the batch, of the differences to the right, below and along both diagonals."""
    right = images[:, :, :, :-1] - images[:, :, :, 1:]
    below = images[:, :, :-1, :] - images[:, :, 1:, :]
    falling = images[:, :, :-1, :-1] - images[:, :, 1:, 1:]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    return right.norm() + below.norm() + falling.norm() + rising.norm()
