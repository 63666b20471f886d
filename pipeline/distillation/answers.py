"""Logits and tokens of teacher and student for batches with different numbers of kept patches."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.distillation.batches import DistillationBatch, Images, to_batch
from pipeline.vit.families import refusal
from pipeline.vit.subset import SubsetViT

# Maps images [b, C, H, W] and keep_indices [b, K] (None for all patches) to logits [b, classes] and final tokens
# [b, P + K, D].
Reader = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def read_kept(read: Reader, batch: DistillationBatch, num_patches: int) -> tuple[Tensor, Tensor]:
    """Read every image at its kept patches; images that keep equally many are read together.

    Args:
        num_patches: number of patches of a whole image. Images that keep all of them are read without gathering.

    Returns:
        Logits [B, classes] and final tokens [B, P + largest K, D], padded with zeros, both float32 and in the order of
        the batch.
    """
    places, logits, tokens = [], [], []
    for rows, keep_indices in batch.groups():
        # Most batches are a single group, whose pixels need not be copied.
        pixels = batch.pixels if len(rows) == len(batch.pixels) else batch.pixels[rows]
        answer = read(pixels, None if keep_indices.shape[1] == num_patches else keep_indices)
        places.append(rows)
        logits.append(answer[0].float())
        tokens.append(answer[1].float())
    longest = max(part.shape[1] for part in tokens)
    order = torch.cat(places).argsort()
    padded = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in tokens]
    return torch.cat(logits)[order], torch.cat(padded)[order]


def as_reader(model: nn.Module) -> nn.Module:
    """Wrap a teacher to read kept tokens; if its family does not allow it, return the model, to read filled images."""
    return SubsetViT(model) if refusal(model) is None else model


class Answers:
    """A frozen teacher's logits and, if asked for, its final tokens.

    Args:
        teacher: a `SubsetViT`, which reads kept tokens, or any other model, which reads the filled image.
        with_tokens: whether tokens are wanted; only a `SubsetViT` has them.
        dtype: dtype of the forward pass.
    """

    def __init__(self, teacher: nn.Module, *, with_tokens: bool, dtype: torch.dtype) -> None:
        self.teacher: Any = teacher.eval().requires_grad_(False)
        assert isinstance(teacher, SubsetViT) or not with_tokens, "there are no tokens to compare"
        self._with_tokens, self._dtype = with_tokens, dtype
        self._kept: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, batch: DistillationBatch) -> tuple[Tensor, Tensor | None]:
        """Return logits [B, classes], and tokens [B, P + largest K, D] or None."""
        if self._kept is None or batch.rows is None:
            return self._compute(batch)
        logits, tokens = self._kept
        if tokens is None:
            return logits[batch.rows], None
        length = self.teacher.num_prefix_tokens + int(batch.num_kept.max())
        return logits[batch.rows], tokens[batch.rows, :length]

    def keep(self, images: Images, device: torch.device, *, batch_size: int, rank: int, world_size: int) -> None:
        """Compute and keep the answers for images in memory, which never change because the teacher is frozen.

        Each worker computes those of its share and gets the others from the other workers.
        """
        count = len(images)
        all_logits = torch.zeros(count, self.teacher.num_classes, device=device)
        all_tokens = None
        if self._with_tokens:
            longest = self.teacher.num_prefix_tokens + int(images.num_kept.max())
            all_tokens = torch.zeros(count, longest, self.teacher.embed_dim, device=device)
        share = torch.arange(count)[rank::world_size]
        for rows in share.split(batch_size):
            batch = to_batch(images.take(rows.numpy()), device, rows.numpy())
            logits, own = self._compute(batch)
            all_logits[batch.rows] = logits
            if all_tokens is not None and own is not None:
                all_tokens[batch.rows, : own.shape[1]] = own
        if world_size > 1:
            # Each row is nonzero on one worker only.
            for shared in (all_logits, all_tokens):
                if shared is not None:
                    torch.distributed.all_reduce(shared)
        self._kept = all_logits, all_tokens

    @torch.no_grad()
    def _compute(self, batch: DistillationBatch) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(batch.pixels.device.type, self._dtype, enabled=self._dtype != torch.float32):
            if not isinstance(self.teacher, SubsetViT):
                return self.teacher(batch.pixels).float(), None
            logits, tokens = read_kept(self.teacher.forward_tokens, batch, self.teacher.num_patches)
        return logits, tokens if self._with_tokens else None
