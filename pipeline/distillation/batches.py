"""Images in memory, and the batches of them that a training reads."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images in memory, N of them, in the order of their source.

    Attributes:
        pixels: float32 [N, C, H, W], in the teacher's normalization.
        labels: int64 [N], -1 where a label is not known.
        keep_indices: int64 [N, largest K], each row padded with 0.
        num_kept: int64 [N], number of valid entries in each row.
        image_ids: names of the images, all different.
    """

    pixels: np.ndarray
    labels: np.ndarray
    keep_indices: np.ndarray
    num_kept: np.ndarray
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Images":
        """Return copies of the given rows."""
        ids = [self.image_ids[row] for row in rows.tolist()]
        return Images(self.pixels[rows], self.labels[rows], self.keep_indices[rows], self.num_kept[rows], ids)


@dataclass(frozen=True)
class DistillationBatch:
    """A worker's share of a step: the same as `Images`, as tensors on its device.

    Attributes:
        pixels: float32 [B, C, H, W], normalized.
        labels: int64 [B], -1 where a label is not known.
        keep_indices: int64 [B, K], padded with zeros.
        num_kept: int64 [B], number of valid entries in each row of `keep_indices`.
        image_ids: name of each image.
        rows: int64 [B], rows that the images have among all images in memory; None if they are streamed, or are
            random views, for which kept answers do not hold.
    """

    pixels: Tensor
    labels: Tensor
    keep_indices: Tensor
    num_kept: Tensor
    image_ids: list[str]
    rows: Tensor | None = None

    def take(self, rows: slice) -> "DistillationBatch":
        """Return the given rows, without copying tensors."""
        return DistillationBatch(
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            keep_indices=self.keep_indices[rows],
            num_kept=self.num_kept[rows],
            image_ids=self.image_ids[rows],
            rows=None if self.rows is None else self.rows[rows],
        )

    def groups(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Group images that keep equally many patches: yield their rows in the batch [b] and `keep_indices` [b, K]."""
        for count in self.num_kept.unique().tolist():
            rows = (self.num_kept == count).nonzero().squeeze(1)
            yield rows, self.keep_indices[rows, :count]


def to_batch(images: Images, device: torch.device, rows: np.ndarray | None = None) -> DistillationBatch:
    """Move images to a worker's device."""
    return DistillationBatch(
        pixels=torch.from_numpy(images.pixels).to(device),
        labels=torch.from_numpy(images.labels).to(device),
        keep_indices=torch.from_numpy(images.keep_indices).to(device),
        num_kept=torch.from_numpy(images.num_kept).to(device),
        image_ids=images.image_ids,
        rows=None if rows is None else torch.from_numpy(rows).to(device),
    )
