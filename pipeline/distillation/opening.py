"""Open training images: from memory or files, as they are or as random views."""

from collections.abc import Collection

import ray

from pipeline.dataset.collection import ImageCollection
from pipeline.distillation.arriving import ArrivingImages
from pipeline.distillation.augment_config import AugmentConfig
from pipeline.distillation.augmented import AugmentedImages, Augmenter
from pipeline.distillation.batches import Images
from pipeline.distillation.images import MemoryImages, StreamedImages
from pipeline.distillation.order import Share
from pipeline.models import LoadedModel

ImageSource = MemoryImages | StreamedImages
TrainingImages = ImageSource | ArrivingImages | AugmentedImages


def open_images(
    where: ImageCollection | list[ray.ObjectRef],
    loaded: LoadedModel,
    share: Share,
    *,
    labels: bool,
    reads_kept: bool | None = None,
    left_out: Collection[str] = (),
) -> ImageSource:
    """Return a worker's share of images.

    Args:
        where: files to stream images from, or a list with one reference to all images in Ray's object store.
        loaded: the model that will read them.
        share: the worker's share of the images.
        labels, reads_kept: whether labels are needed, and whether only kept patches are read; as in `read_inputs`.
        left_out: ids of images that no worker reads.
    """
    if isinstance(where, ImageCollection):
        return StreamedImages(where, loaded, share, labels=labels, reads_kept=reads_kept, left_out=left_out)
    images: Images = ray.get(where[0])
    return MemoryImages(images, share, left_out)


def as_views(
    images: ImageSource | ArrivingImages,
    augment: AugmentConfig | None,
    teacher: LoadedModel,
    *,
    seed: int,
    reads_kept: bool,
    notes: bool,
) -> TrainingImages:
    """Return the images as random views, another at each epoch, if that is asked for; otherwise as they are.

    Args:
        images: this worker's share of the images.
        augment: settings of the views; `None` for images as they are.
        teacher: the teacher, which knows the normalization and the patch grid of the images.
        seed: seed of the training.
        reads_kept: whether teacher or student reads only the kept patches.
        notes: whether to log which settings have no effect on images that are read on kept patches; one of the workers
            does.
    """
    if augment is None:
        return images
    augmenter = Augmenter.of(augment, teacher, seed=seed, reads_kept=reads_kept)
    return AugmentedImages(images, augmenter, notes=notes)
