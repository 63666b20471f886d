"""Training images that are made while a student is trained on them.

The first epoch reads each part as soon as it is there, in the order in which parts are made. Every worker waits for its
own, and mixes the images of a few parts. Later epochs read images as those of any dataset: from memory if they fit,
otherwise streamed from storage. So the student depends on seeds and workers, and not on when a part arrived.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa
import torch

from pipeline.dataset.collection import ImageCollection
from pipeline.dataset.conversion import Convert
from pipeline.dataset.units import RowRange
from pipeline.distillation.batches import DistillationBatch, Images, to_batch
from pipeline.distillation.images import MemoryImages, StreamedImages, concatenate, gather, rebatch, to_images
from pipeline.distillation.order import Share, even_sizes, streamed_order
from pipeline.inputs import read_units
from pipeline.models import LoadedModel

# Number of images that are copied at a time out of the last buffer.
_GIVEN_AT_ONCE = 256


@dataclass(frozen=True)
class Arriving:
    """Images that are being made, for all workers.

    Attributes:
        planned: all images. Its one source lists them in the order of the dataset, its units in the order in which they
            are made.
        in_memory: whether all of them fit into the memory of each worker.
        patience_s: longest time, in seconds, that a worker may wait for a part.
    """

    planned: ImageCollection
    in_memory: bool
    patience_s: float


class ArrivingImages:
    """A worker's share of images that are being made.

    Args:
        arriving: all images, as they will be made.
        loaded: the teacher.
        share: the worker's share of the images.
        labels: whether labels are needed.

    Attributes:
        order: text that names what the order of the images depends on, besides seed and epoch.
    """

    def __init__(self, arriving: Arriving, loaded: LoadedModel, share: Share, *, labels: bool) -> None:
        self.num_images = arriving.planned.num_rows
        later = "in memory" if arriving.in_memory else "streamed"
        self.order = f"{streamed_order(share)}, as made, then {later}"
        self._planned, self._in_memory = arriving.planned, arriving.in_memory
        self._loaded, self._labels = loaded, labels
        self._share = share
        self._made: MemoryImages | StreamedImages | None = None
        self._has_waited = False

    def batches(self, epoch: int, device: torch.device) -> Iterator[DistillationBatch]:
        """Yield this worker's batches of an epoch; other workers may have more or fewer."""
        if epoch:
            yield from self.all_made().batches(epoch, device)
            return
        share = self._share
        (source,), own = self._planned.sources, self._planned.units[share.rank :: share.world_size]
        if not own:
            return
        sizes = even_sizes(sum(unit.num_rows for _, unit in own), share.own_batch_size)
        arriving = self._read(ImageCollection((source,), own))
        mixed = mix_in_buffer(arriving, share.shuffle_buffer, np.random.default_rng((share.seed, share.rank)))
        for images in rebatch(mixed, sizes):
            yield to_batch(images, device)
        # By the end of an epoch every worker has read its own parts, so all parts are there.
        self._has_waited = True

    def all_made(self) -> MemoryImages | StreamedImages:
        """Return the images once all of them are there, as those of any dataset."""
        if self._made is None:
            (source,) = self._planned.sources
            if source.arrivals is not None and not self._has_waited:
                # A training may go on after its first epoch while a lost part is made again.
                for _, unit in self._planned.units:
                    source.arrivals.wait_for(cast(RowRange, unit).uri)
            there = ImageCollection.of(replace(source, arrivals=None))
            if self._in_memory:
                self._made = MemoryImages(gather(self._read(there), there, self._loaded), self._share)
            else:
                self._made = StreamedImages(there, self._loaded, self._share, labels=self._labels)
        return self._made

    def _read(self, images: ImageCollection) -> Iterator[Images]:
        """Read images in this process, part by part, waiting for parts that are not there yet."""
        for convert, tables in read_units(images, self._loaded, labels=self._labels):
            # Whole parts: how they are cut into tables depends on their size, which is not known before they are made,
            # and the order of the images must not.
            yield concatenate([_convert(convert, table) for table in tables])


def _convert(convert: Convert, table: pa.Table) -> Images:
    return to_images(
        {
            "pixels": convert.pixels(table),
            "label": convert.labels(table).to_numpy(zero_copy_only=False),
            "keep_indices": convert.keep_indices(table).to_pylist(),
            "image_id": table["image_id"].to_pylist(),
        }
    )


def mix_in_buffer(parts: Iterable[Images], buffer: int, random: np.random.Generator) -> Iterator[Images]:
    """Yield all images in a random order, mixed in a buffer that holds the given number of images.

    Once the buffer is full, each part swaps places with as many images of it, and only those are copied.
    """
    filling: list[Images] = []
    held: Images | None = None
    for part in parts:
        if held is not None:
            held, given = _exchange(held, part, random)
            yield given
            continue
        filling.append(part)
        if sum(map(len, filling)) > buffer:
            together = concatenate(filling)
            filling.clear()
            order = random.permutation(len(together))
            held = together.take(order[:buffer])
            given = together.take(order[buffer:])
            del together
            yield given
    left = held if held is not None else concatenate(filling) if filling else None
    if left is not None:
        order = random.permutation(len(left))
        for start in range(0, len(order), _GIVEN_AT_ONCE):
            yield left.take(order[start : start + _GIVEN_AT_ONCE])


def _exchange(held: Images, part: Images, random: np.random.Generator) -> tuple[Images, Images]:
    """Put a part into a buffer; return the buffer, and as many images, drawn from both, that leave it.

    The buffer's own arrays are written to.
    """
    drawn = random.permutation(len(held) + len(part))[: len(part)]
    places = drawn[drawn < len(held)]
    passed_on = drawn[drawn >= len(held)] - len(held)
    given = concatenate([held.take(places), part.take(passed_on)])
    taken_in = part.take(np.setdiff1d(np.arange(len(part)), passed_on))
    return _put(held, places, taken_in), given.take(random.permutation(len(given)))


def _put(held: Images, places: np.ndarray, images: Images) -> Images:
    """Return images with others in some places; all arrays but `keep_indices` are written to."""
    widths = [each.keep_indices.shape[1] for each in (held, images)]
    keep_indices = np.pad(held.keep_indices, ((0, 0), (0, max(widths) - widths[0])))
    keep_indices[places] = np.pad(images.keep_indices, ((0, 0), (0, max(widths) - widths[1])))
    for name in ("pixels", "labels", "num_kept"):
        getattr(held, name)[places] = getattr(images, name)
    for place, image_id in zip(places.tolist(), images.image_ids, strict=True):
        held.image_ids[place] = image_id
    return replace(held, keep_indices=keep_indices)
