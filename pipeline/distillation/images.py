"""Training images: in memory if they fit, otherwise streamed from storage; each image once per epoch.

In memory, an epoch is a permutation of all images, seeded by (seed, epoch) and cut into batches; each worker takes its
share of every batch, so that any number of workers takes the same steps.

Streamed, an epoch is a permutation of the files' row groups, which is cut into equal shares. Each worker reads its
own as a Ray Dataset through a shuffle buffer: the dataset is not copied, and images mix within the row groups that the
buffer holds. If each part holds a single class, the buffer must hold several parts. A large row group is read by one
task, from its start to its end. The order depends on the number of workers.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray.data
import torch
from torch import Tensor

from pipeline.dataset.collection import ImageCollection
from pipeline.distillation.batches import DistillationBatch, Images, to_batch
from pipeline.distillation.order import Share, even_sizes, plan_epoch, share_units, streamed_order
from pipeline.errors import DatasetError
from pipeline.inputs import read_inputs
from pipeline.models import LoadedModel
from pipeline.models.image_reader import num_patches

# Number of rows of a streamed dataset that one task reads.
_ROWS_PER_BLOCK = 256


def rebatch(parts: Iterable[Images], sizes: Iterable[int]) -> Iterator[Images]:
    """Cut images that come in portions of any size into batches of the given sizes, then yield the rest.

    With a shuffle buffer, Ray Data yields smaller batches than asked for, even of one image, at the end of each block.
    """
    portions = (part for part in parts if len(part))
    part, start = None, 0
    for size in sizes:
        pieces: list[Images] = []
        while size:
            if part is None or start == len(part):
                part, start = next(portions, None), 0
            if part is None:
                break
            pieces.append(part.take(np.arange(start, min(start + size, len(part)))))
            size, start = size - len(pieces[-1]), start + len(pieces[-1])
        if not pieces:
            return
        yield concatenate(pieces)
    if part is not None and start < len(part):
        yield part.take(np.arange(start, len(part)))
    yield from portions


class MemoryImages:
    """A worker's share of images in memory.

    Args:
        images: images of all workers.
        share: the worker's share of them.
        left_out: ids of images that nobody reads.

    Attributes:
        order: always empty, because the order depends only on seed and epoch.
        own: slice of a batch that is this worker's share; it may be empty.
    """

    order = ""

    def __init__(self, images: Images, share: Share, left_out: Collection[str] = ()) -> None:
        self.images = images
        self._rows = np.flatnonzero([image_id not in left_out for image_id in images.image_ids])
        self.num_images = len(self._rows)
        self._share = share
        self.own = slice(share.rank, None, share.world_size)

    def batches(self, epoch: int, device: torch.device) -> Iterator[DistillationBatch]:
        """Yield this worker's share, which may be empty, of every batch of an epoch."""
        for rows in self._plan(epoch):
            own = rows[self.own]
            yield to_batch(self.images.take(own), device, own)

    def outlines(self, epoch: int, device: torch.device) -> Iterator[DistillationBatch]:
        """Yield every batch of an epoch, for all workers together, with an empty image in place of each image."""
        empty = torch.zeros(1, *self.images.pixels.shape[1:], device=device)
        outline = replace(self.images, pixels=np.empty((len(self.images), 0), np.float32))
        for rows in self._plan(epoch):
            batch = to_batch(outline.take(rows), device, rows)
            yield replace(batch, pixels=empty.expand(len(rows), *empty.shape[1:]))

    def pixels(self, rows: Tensor) -> Tensor:
        """Return the pixels of rows of the images, on the device of the rows: float32 [B, C, H, W]."""
        return torch.from_numpy(self.images.pixels[rows.cpu().numpy()]).to(rows.device)

    def in_order(self, device: torch.device) -> Iterator[DistillationBatch]:
        """Yield this worker's share of all images once, unshuffled."""
        own = self._rows[self.own]
        for start in range(0, len(own), self._share.batch_size):
            rows = own[start : start + self._share.batch_size]
            yield to_batch(self.images.take(rows), device, rows)

    def _plan(self, epoch: int) -> list[np.ndarray]:
        share = self._share
        batches = plan_epoch(self.num_images, share.batch_size, seed=share.seed, epoch=epoch)
        return [self._rows[batch] for batch in batches]


class StreamedImages:
    """A worker's share of streamed images.

    Args:
        source: images of all workers.
        loaded: the model that will read them.
        share: the worker's share of them.
        labels, reads_kept: whether labels are needed, and whether only kept patches are read; as in `read_inputs`.
        left_out: ids of images that no worker reads.

    Attributes:
        order: text that names what the order of the images depends on, besides seed and epoch.
    """

    def __init__(
        self,
        source: ImageCollection,
        loaded: LoadedModel,
        share: Share,
        *,
        labels: bool,
        reads_kept: bool | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        self.num_images = source.num_rows - len(left_out)
        self._left_out = left_out
        self._source, self._loaded = source, loaded
        self._needed = {"labels": labels, "reads_kept": reads_kept}
        self._share = share
        self.order = streamed_order(share)

    def batches(self, epoch: int, device: torch.device) -> Iterator[DistillationBatch]:
        """Yield this worker's batches of an epoch; other workers may have more or fewer."""
        share = self._share
        shuffled = {
            "local_shuffle_buffer_size": share.shuffle_buffer,
            "local_shuffle_seed": int(np.random.default_rng((share.seed, epoch, share.rank)).integers(2**31)),
        }
        return self._read(epoch, device, shuffled)

    def in_order(self, device: torch.device) -> Iterator[DistillationBatch]:
        """Yield this worker's share of all images once."""
        return self._read(0, device, {})

    def _read(self, epoch: int, device: torch.device, shuffled: dict[str, int]) -> Iterator[DistillationBatch]:
        units, batch_size = share_units(self._source.units, self._share, epoch=epoch), self._share.own_batch_size
        if not units:
            return
        source = replace(self._source, units=units)
        # The bounds of blocks decide the order, and Ray would choose them by the cores of the cluster.
        num_blocks = -(-source.num_rows // _ROWS_PER_BLOCK)
        dataset = open_inputs(source, self._loaded, **self._needed, num_blocks=num_blocks)
        # Without more rows in the buffer than in a batch, nothing would be shuffled.
        size = max(batch_size, shuffled.pop("local_shuffle_buffer_size", 0))
        options: dict[str, Any] = {"local_shuffle_buffer_size": size, **shuffled} if shuffled else {}
        batches = dataset.iter_batches(batch_size=batch_size, batch_format="numpy", **options)
        sizes = even_sizes(sum(unit.num_rows for _, unit in units), batch_size)
        for images in rebatch(map(self._without_left_out, map(to_images, batches)), sizes):
            yield to_batch(images, device)

    def _without_left_out(self, images: Images) -> Images:
        if not self._left_out:
            return images
        return images.take(np.flatnonzero([image_id not in self._left_out for image_id in images.image_ids]))


def open_inputs(
    source: ImageCollection,
    loaded: LoadedModel,
    *,
    labels: bool,
    reads_kept: bool | None = None,
    num_blocks: int | None = None,
) -> ray.data.Dataset:
    """Return the rows of `read_inputs`, in the order of the source.

    Args:
        source, loaded, labels, reads_kept: arguments of `read_inputs`.
        num_blocks: number of blocks to read; by default Ray chooses it.

    Raises:
        DatasetError: as `read_inputs`.
    """
    dataset = read_inputs(source, loaded, labels=labels, reads_kept=reads_kept, override_num_blocks=num_blocks)
    dataset.context.execution_options.preserve_order = True
    return dataset


def image_bytes(source: ImageCollection, loaded: LoadedModel, *, with_tokens: bool) -> int:
    """Return the bytes that a source's images take in memory, including the teacher's final tokens if they are kept."""
    tokens = num_patches(loaded) * int(getattr(loaded.model, "embed_dim", 0)) if with_tokens else 0
    return source.num_rows * (int(np.prod(loaded.input_size)) + tokens) * np.dtype(np.float32).itemsize


def read_into_memory(
    source: ImageCollection, loaded: LoadedModel, *, labels: bool, reads_kept: bool | None = None
) -> Images:
    """Read all images of a source into memory; arguments as of `read_inputs`.

    Raises:
        DatasetError: as `read_inputs`.
    """
    dataset = open_inputs(source, loaded, labels=labels, reads_kept=reads_kept)
    return gather(map(to_images, dataset.iter_batches(batch_size=None, batch_format="numpy")), source, loaded)


def gather(portions: Iterable[Images], source: ImageCollection, loaded: LoadedModel) -> Images:
    """Return all images of a source together, without holding their pixels twice.

    Raises:
        DatasetError: the number of images is not that of the source.
    """
    pixels = np.empty((source.num_rows, *loaded.input_size), np.float32)
    parts: list[Images] = []
    start = 0
    for part in portions:
        pixels[start : start + len(part)] = part.pixels
        parts.append(replace(part, pixels=pixels[start : start + len(part)]))
        start += len(part)
    if start != source.num_rows:
        raise DatasetError(f"{source.uri!r}: read {start} images of {source.num_rows}")
    return concatenate(parts, pixels)


def concatenate(parts: Sequence[Images], pixels: np.ndarray | None = None) -> Images:
    """Concatenate images.

    Args:
        parts: images to put one after another; at least one.
        pixels: float32 [N, C, H, W], pixels of all parts, if they are in one array already.
    """
    width = max(part.keep_indices.shape[1] for part in parts)
    return Images(
        np.concatenate([part.pixels for part in parts]) if pixels is None else pixels,
        np.concatenate([part.labels for part in parts]),
        np.concatenate([np.pad(p.keep_indices, ((0, 0), (0, width - p.keep_indices.shape[1]))) for p in parts]),
        np.concatenate([part.num_kept for part in parts]),
        [image_id for part in parts for image_id in part.image_ids],
    )


def to_images(columns: Any) -> Images:
    """Convert columns of Ray Data, name → array; lists of different lengths come as an array of arrays."""
    kept = [np.asarray(indices, np.int64) for indices in columns["keep_indices"]]
    num_kept = np.array([len(indices) for indices in kept], np.int64)
    padded = np.zeros((len(kept), int(num_kept.max(initial=0))), np.int64)
    for row, indices in enumerate(kept):
        padded[row, : len(indices)] = indices
    pixels = np.stack(list(columns["pixels"])).astype(np.float32, copy=False)
    ids = [str(image_id) for image_id in columns["image_id"]]
    return Images(pixels, columns["label"].astype(np.int64), padded, num_kept, ids)
