"""Turn images of any dataset into a model's inputs, for calibration, distillation and evaluation."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import ray.data

from pipeline.dataset.collection import ImageCollection, find_images
from pipeline.dataset.conversion import Convert, size_text
from pipeline.dataset.open_files import OpenFiles
from pipeline.dataset.reader import read_collection
from pipeline.dataset.rows import read_unit
from pipeline.dataset.source import Source
from pipeline.errors import DatasetError
from pipeline.inputs.labels import map_labels
from pipeline.models import LoadedModel, RealImageTransform
from pipeline.models.image_reader import num_patches
from pipeline.vit.families import refusal

# Columns that are read of each source, if it has them.
COLUMNS = ("image_id", "image", "label", "keep_indices")
# Starting a process takes longer than decoding this many images.
_ROWS_PER_BLOCK = 64
_FEW_BLOCKS = 16


def read_inputs(
    images: str | Sequence[str] | Source | ImageCollection,
    loaded: LoadedModel,
    *,
    labels: bool = False,
    reads_kept: bool | None = None,
    override_num_blocks: int | None = None,
) -> ray.data.Dataset:
    """Return a model's inputs as a Ray Dataset, one row per image.

    The columns are `pixels` (float32 [C, H, W], normalized), `label` (int64), `keep_indices` (list of int64) and
    `image_id` (string).

    Synthetic images are only normalized, because they lie on the teacher's patch grid. Real ones go through the
    evaluation transform of the model's own config.

    Labels are mapped by class name. If no name matches, they go by number if labels are needed and the numbers of
    classes are equal; if labels are not needed, they are -1. A missing label is -1 as well, and so is a number that is
    no class of the model, where labels are not needed; missing `keep_indices` are all patches.

    Args:
        images: one or several URIs, as `pipeline.dataset.read_images` takes them; or the result of `find_source` or
            `find_images`, perhaps with fewer units or in another order.
        loaded: the model that will read the images.
        labels: whether labels are needed.
        reads_kept: whether only the kept patches are read, so that their grid must be the model's; by default, whether
            the model can do so.
        override_num_blocks: number of blocks to read, which limits how many tasks read at once; by default few if there
            are few images.

    Raises:
        DatasetError: as `read_images`; or synthetic images have another size or patch grid than the model; or labels
            are needed and are missing, or are not the model's.
    """
    if isinstance(images, Source):
        images = ImageCollection.of(images)
    elif not isinstance(images, ImageCollection):
        images = find_images(images)
    converts = [conversion(source, loaded, labels=labels, reads_kept=reads_kept) for source in images.sources]
    num_blocks = override_num_blocks or _few_blocks(images)
    return read_collection(images, columns=COLUMNS, converts=converts, num_blocks=num_blocks)


def read_units(
    images: ImageCollection, loaded: LoadedModel, *, labels: bool, reads_kept: bool | None = None
) -> Iterator[tuple[Convert, Iterator[pa.Table]]]:
    """Yield the rows of each unit, encoded, in small tables and in this process, with what converts them.

    Raises:
        DatasetError: as `read_inputs`, or a file cannot be read.
    """
    converts = [conversion(source, loaded, labels=labels, reads_kept=reads_kept) for source in images.sources]
    with OpenFiles() as files:
        for number, unit in images.units:
            yield converts[number], read_unit(images.sources[number], unit, COLUMNS, files)


def conversion(source: Source, loaded: LoadedModel, *, labels: bool, reads_kept: bool | None = None) -> Convert:
    """Return the function that converts encoded rows of a source to a model's inputs; arguments as of `read_inputs`.

    Raises:
        DatasetError: as `read_inputs`.
    """
    has_labels = "label" in source.columns
    if labels and not has_labels:
        likely = source.likely_labels
        hint = "" if likely is None else f"; if its column {likely} holds them, write it as `label`, of whole numbers"
        raise DatasetError(f"{source.uri!r} has no labels: neither a column `label` nor class subfolders{hint}")
    reads_kept = refusal(loaded.model) is None if reads_kept is None else reads_kept
    _check_size(source, loaded)
    if reads_kept:
        _check_grid(source, loaded)
    label_map, note = map_labels(source, loaded, needed=labels) if has_labels else (None, None)
    return Convert(
        uri=source.uri,
        size=loaded.input_size,
        mean=np.array(loaded.mean, np.float32),
        std=np.array(loaded.std, np.float32),
        num_classes=len(loaded.class_names),
        num_patches=num_patches(loaded),
        reads_kept=reads_kept,
        label_map=label_map,
        labels_note=note,
        labels_needed=labels,
        transform=None if source.synthetic else RealImageTransform(loaded),
    )


def _few_blocks(images: ImageCollection) -> int | None:
    """Return a small number of blocks for few images, for which Ray would start a process on every core; else None."""
    blocks = -(-images.num_rows // _ROWS_PER_BLOCK)
    return blocks if blocks <= _FEW_BLOCKS else None


def _check_size(source: Source, loaded: LoadedModel) -> None:
    if source.manifest is None:
        return
    size = tuple(source.manifest["image_size"])
    if size != loaded.input_size:
        given, wanted = size_text(size), size_text(loaded.input_size)
        raise DatasetError(f"images of {source.uri!r} are {given}, model {loaded.name!r} reads {wanted}")


def _check_grid(source: Source, loaded: LoadedModel) -> None:
    """Refuse another grid of patches: the numbers of a small one are all in a large one, at other places."""
    grid = None if source.manifest is None else source.manifest.get("grid_size")
    # Images and patches are square.
    own = math.isqrt(num_patches(loaded))
    if isinstance(grid, int) and grid != own:
        raise DatasetError(
            f"images of {source.uri!r} keep patches of a {grid}x{grid} grid, model {loaded.name!r} has {own}x{own}"
        )
