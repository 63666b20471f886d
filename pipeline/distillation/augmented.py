"""Training images as random views, another at each epoch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pipeline.distillation import augment
from pipeline.distillation.arriving import ArrivingImages
from pipeline.distillation.augment import Draws
from pipeline.distillation.augment_config import WHOLE_ONLY, AugmentConfig
from pipeline.distillation.batches import DistillationBatch
from pipeline.distillation.combining import Combination
from pipeline.distillation.images import MemoryImages, StreamedImages
from pipeline.inversion.draws import draw_noise
from pipeline.log import logger
from pipeline.models import LoadedModel
from pipeline.models.image_reader import num_patches


@dataclass(frozen=True)
class Augmenter:
    """Turn batches into views.

    Attributes:
        config: strengths of the changes.
        seed: seed of the training.
        mean, std: normalization of the pixels, one number per channel.
        grid: number of patches in a column and in a row; for a teacher without patches, the numbers of pixels.
        reads_kept: whether teacher or student reads only the kept patches, so that an image with stopped patches cannot
            be moved.
    """

    config: AugmentConfig
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grid: tuple[int, int]
    reads_kept: bool

    @classmethod
    def of(cls, config: AugmentConfig, teacher: LoadedModel, *, seed: int, reads_kept: bool) -> "Augmenter":
        """Make the augmenter of a teacher's images."""
        side = round(num_patches(teacher) ** 0.5)
        grid = (side, side) if side else teacher.input_size[1:]
        return cls(config, seed, teacher.mean, teacher.std, grid, reads_kept)

    def __call__(self, batch: DistillationBatch, epoch: int) -> DistillationBatch:
        """Return the view of each image at an epoch, marked as no longer an image whose answers are kept."""
        return self.view(batch, epoch, slice(None), lambda rows: batch.pixels[rows])

    def view(
        self, batch: DistillationBatch, epoch: int, own: slice, read: Callable[[Tensor], Tensor]
    ) -> DistillationBatch:
        """Return the views that some images of a batch have at an epoch; they are the same as if all were returned.

        Random numbers, partners and the patches to read are those of the whole batch, and take no time. Pixels are read
        and changed of these images, and of those that are mixed into them.

        Args:
            batch: all images of the batch. Of `pixels` only shape and device are used, so an outline will do (see
                `MemoryImages.outlines`).
            epoch: number of the epoch, counted from 0.
            own: the images to return, as a slice of the batch.
            read: function that returns the pixels [b, C, H, W] of rows of the batch, int64 [b].
        """
        rows = torch.arange(len(batch.pixels), device=batch.pixels.device)[own].contiguous()
        if not len(rows):
            return replace(batch.take(own), rows=None)
        draws = self._draw(batch, epoch)
        batch, erased = self._erase(batch, draws)
        whole = self.find_whole(batch)
        batch, combination = self._combine(batch, whole, draws)
        needed = rows if combination is None else combination.needed(rows)
        pixels = self._change(read(needed), draws.take(needed), erased[needed], whole[needed])
        if combination is not None:
            pixels = combination.apply(pixels, needed)[torch.searchsorted(needed, rows)]
        return replace(batch.take(own), pixels=self._add_noise(pixels, draws.take(rows)), rows=None)

    def find_whole(self, batch: DistillationBatch) -> Tensor:
        """Return which images, bool [B], are read as a whole."""
        if not self.reads_kept:
            return torch.ones_like(batch.num_kept, dtype=torch.bool)
        return batch.num_kept == self.grid[0] * self.grid[1]

    def _draw(self, batch: DistillationBatch, epoch: int) -> Draws:
        count = self.grid[0] * self.grid[1]
        return augment.draw_augmentation(
            batch.image_ids,
            seed=self.seed,
            epoch=epoch,
            num_patches=count if self.reads_kept else 0,
            # On a grid of pixels only blocks are erased, not scattered patches.
            num_erased=0 if self.grid == tuple(batch.pixels.shape[-2:]) else count,
            device=batch.pixels.device,
        )

    def _erase(self, batch: DistillationBatch, draws: Draws) -> tuple[DistillationBatch, Tensor]:
        """Choose patches, bool [B, N], that become gray; images that were on kept patches are whole ones then."""
        if not self.config.erase:
            return batch, draws.erased.new_zeros(len(draws.seeds), self.grid[0] * self.grid[1], dtype=torch.bool)
        chosen = draws.chosen("erase", self.config.erase).unsqueeze(1)
        gone = augment.choose_erased(draws, self.grid)
        if self.reads_kept:
            kept = _as_mask(batch, self.grid[0] * self.grid[1])
            gone = torch.where(self.find_whole(batch).unsqueeze(1), gone, ~kept)
            batch = _read_at(batch, kept | chosen)
        return batch, gone & chosen

    def _change(self, pixels: Tensor, draws: Draws, erased: Tensor, whole: Tensor) -> Tensor:
        """Change images, each by itself.

        Args:
            pixels: float32 [B, C, H, W], normalized.
            draws: random numbers of these images.
            erased: bool [B, N], patches that become gray.
            whole: bool [B], images that are read as a whole.
        """
        if self.config.erase:
            mean, std = self._normalization(pixels)
            gray = (draws.values["erase_gray"].view(-1, 1, 1, 1) - mean) / std
            pixels = augment.paste(pixels, gray, erased, self.grid)
        if whole.any():
            pixels = torch.where(whole.view(-1, 1, 1, 1), self._move(pixels, draws), pixels)
        return self._recolor(pixels, draws)

    def _move(self, pixels: Tensor, draws: Draws) -> Tensor:
        config = self.config
        if config.degrees or config.translate or config.scale:
            pixels = augment.move(
                pixels,
                angle=draws.around("angle", config.degrees),
                down=draws.around("down", config.translate),
                right=draws.around("right", config.translate),
                size=1 + draws.around("size", config.scale),
            )
        if config.flip:
            pixels = augment.mirror(pixels, draws.chosen("flip", config.flip))
        if config.blur:
            pixels = augment.blur(pixels, draws.up_to("blur", config.blur), largest=config.blur)
        return pixels

    def _recolor(self, pixels: Tensor, draws: Draws) -> Tensor:
        config = self.config
        if not (config.brightness or config.contrast or config.saturation):
            return pixels
        mean, std = self._normalization(pixels)
        colored = augment.recolor(
            pixels * std + mean,
            brightness=1 + draws.around("brightness", config.brightness),
            contrast=1 + draws.around("contrast", config.contrast),
            saturation=1 + draws.around("saturation", config.saturation) if config.saturation else None,
        )
        return (colored.clamp(0, 1) - mean) / std

    def _combine(
        self, batch: DistillationBatch, whole: Tensor, draws: Draws
    ) -> tuple[DistillationBatch, Combination | None]:
        """Choose which images are mixed with others of the batch; return the patches to read then, and the labels."""
        config = self.config
        if not (config.mixup or config.cutmix):
            return batch, None
        # Whole images are one group, even if the stopped patches of some are filled.
        groups = batch.num_kept.masked_fill(whole, -1)
        partners = augment.find_partners(draws.values["partner"], groups)
        paired = partners != torch.arange(len(partners), device=partners.device)
        mixed, chosen = draws.chosen("mixup", config.mixup) & whole, draws.chosen("cutmix", config.cutmix)
        # A mixture has no label.
        batch = replace(batch, labels=batch.labels.masked_fill((mixed | chosen) & paired, -1))
        values = draws.values
        blocks = augment.choose_blocks(values["cutmix_area"], values["cutmix_row"], values["cutmix_column"], self.grid)
        blocks = blocks & (chosen & whole).unsqueeze(1)
        batch, first, second = self._unite(batch, partners, chosen & ~whole, draws)
        share = values["mixup_share"] * mixed
        return batch, Combination(partners, share, blocks, first, second, self.grid)

    def _unite(
        self, batch: DistillationBatch, partners: Tensor, chosen: Tensor, draws: Draws
    ) -> tuple[DistillationBatch, Tensor, Tensor]:
        """Give the chosen images, read on kept patches, the patches that their partner and its partner keep.

        Returns:
            The images with the patches to read, and which of them come from the one and the other, bool [B, N] each.
        """
        if not chosen.any():
            nothing = chosen.new_zeros(len(chosen), self.grid[0] * self.grid[1])
            return batch, nothing, nothing
        kept = _as_mask(batch, self.grid[0] * self.grid[1])
        first, second = partners, partners[partners]
        united = kept.clone()
        for count in batch.num_kept[chosen].unique():
            rows = (chosen & (batch.num_kept == count)).nonzero().squeeze(1)
            others = [kept[first[rows]], kept[second[rows]]]
            united[rows] = augment.unite_kept(kept[rows], others, draws.patches[rows])
        from_first = united & ~kept & kept[first]
        from_second = united & ~kept & ~kept[first]
        return _read_at(batch, united), from_first, from_second

    def _add_noise(self, pixels: Tensor, draws: Draws) -> Tensor:
        if not self.config.noise:
            return pixels
        mean, std = self._normalization(pixels)
        level = draws.up_to("noise", self.config.noise).view(-1, 1, 1, 1)
        noisy = pixels + level * draw_noise(pixels, draws.seeds)
        return torch.minimum(torch.maximum(noisy, -mean / std), (1 - mean) / std)

    def _normalization(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std


class AugmentedImages:
    """A worker's share of training images, shown as views; each image is still read once an epoch.

    Args:
        source: this worker's share of the images, as they are.
        augmenter: turns them into views.
        notes: whether to log, once, which settings have no effect on images that are read on kept patches.
    """

    def __init__(
        self, source: MemoryImages | StreamedImages | ArrivingImages, augmenter: Augmenter, *, notes: bool
    ) -> None:
        self.num_images, self.order = source.num_images, source.order
        self._source, self._augmenter, self._notes = source, augmenter, notes

    def batches(self, epoch: int, device: torch.device) -> Iterator[DistillationBatch]:
        """Yield this worker's share of every batch of an epoch."""
        source = self._source
        if isinstance(source, ArrivingImages) and epoch:
            source = source.all_made()
        if isinstance(source, MemoryImages):
            # Partners come from the shares of all workers, so that any number of workers shows the same views.
            for batch in source.outlines(epoch, device):
                self._note_skipped(batch)
                yield self._augmenter.view(batch, epoch, source.own, partial(_read_pixels, source, batch))
        else:
            for batch in source.batches(epoch, device):
                self._note_skipped(batch)
                yield self._augmenter(batch, epoch)

    def _note_skipped(self, batch: DistillationBatch) -> None:
        if not self._notes:
            return
        skipped = [name for name in WHOLE_ONLY if getattr(self._augmenter.config, name)]
        if not skipped or self._augmenter.find_whole(batch).all():
            return
        self._notes = False
        erased = " (images that erase turns into whole images get all changes)" if self._augmenter.config.erase else ""
        logger.info(f"augment: images with stopped patches do not get {', '.join(skipped)}{erased}")


def _read_pixels(source: MemoryImages, outline: DistillationBatch, rows: Tensor) -> Tensor:
    assert outline.rows is not None
    return source.pixels(outline.rows[rows])


def _as_mask(batch: DistillationBatch, num_patches: int) -> Tensor:
    """Return the kept patches as bool [B, N]."""
    width = batch.keep_indices.shape[1]
    valid = torch.arange(width, device=batch.num_kept.device) < batch.num_kept.unsqueeze(1)
    # Padding is written to an additional column, which is cut off.
    indices = batch.keep_indices.masked_fill(~valid, num_patches)
    mask = torch.zeros(len(indices), num_patches + 1, dtype=torch.bool, device=indices.device)
    return mask.scatter(1, indices, True)[:, :num_patches]


def _read_at(batch: DistillationBatch, patches: Tensor) -> DistillationBatch:
    """Return the images with other patches to read, bool [B, N]."""
    num_kept = patches.sum(dim=1)
    return replace(batch, keep_indices=_as_indices(patches, num_kept), num_kept=num_kept)


def _as_indices(kept: Tensor, num_kept: Tensor) -> Tensor:
    """Return the true columns of each row, ascending, padded with 0: int64 [B, most]."""
    width = int(num_kept.max())
    order = torch.sort((~kept).byte(), dim=1, stable=True).indices[:, :width]
    return order * (torch.arange(width, device=kept.device) < num_kept.unsqueeze(1))
