"""Turn images of any dataset into a model's inputs, for calibration, distillation and evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from PIL import Image
from torch import Tensor

from pipeline.dataset import schema
from pipeline.dataset.collection import ImageCollection, find_images
from pipeline.dataset.reader import read_collection, with_tensors
from pipeline.dataset.rows import read_column, read_first, repeated_id
from pipeline.dataset.sources import Source, find_source
from pipeline.errors import DatasetError
from pipeline.labels import UNKNOWN, map_labels
from pipeline.log import logger
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
    override_num_blocks: int | None = None,
) -> ray.data.Dataset:
    """Return rows `pixels` float32 [C, H, W] normalized, `label` int64, `keep_indices` int64 list, `image_id` string.

    Synthetic images are only normalized, because they lie on the teacher's patch grid. Real ones go through the
    evaluation transform of the model's own config.

    Labels are mapped by class name. If no name matches, they go by number if labels are needed and the numbers of
    classes are equal; if labels are not needed, they are -1. A missing label is -1 as well, and missing `keep_indices`
    are all patches.

    Args:
        images: one or several URIs, as `pipeline.dataset.read_images` takes them; or the result of `find_source` or
            `find_images`, perhaps with fewer units or in another order.
        loaded: the model that will read the images.
        labels: whether labels are needed.
        override_num_blocks: number of blocks to read, for parallelism; by default few if there are few images.

    Raises:
        DatasetError: as `read_images`; or synthetic images have another size or patch grid than the model; or labels
            are needed and are missing, or are not the model's.
    """
    if isinstance(images, Source):
        images = ImageCollection.of(images)
    elif not isinstance(images, ImageCollection):
        images = find_images(images)
    converts = [conversion(source, loaded, labels=labels) for source in images.sources]
    num_blocks = override_num_blocks or _few_blocks(images)
    return read_collection(images, columns=COLUMNS, converts=converts, num_blocks=num_blocks)


def check_inputs(images: ImageCollection, loaded: LoadedModel, *, labels: bool = False) -> None:
    """Check, without a cluster, all ids and labels and the first images, on which reading would fail hours later.

    If labels go by number, one line on standard error says so, with the classes that are taken to be the same.

    Args:
        images: from one or several URIs.
        loaded: the model that will read the images.
        labels: whether labels are needed.

    Raises:
        DatasetError: as `read_inputs`; or two images of a source share an id, a label has no class, or the first image
            of a source cannot be decoded.
    """
    for source in images.sources:
        _check_source(source, loaded, labels=labels)
        repeated = repeated_id(source)
        if repeated is not None:
            raise DatasetError(
                f"{source.uri!r} has more than one image with the image_id {repeated!r}: "
                "if these are several datasets, give the URI of each in a list"
            )


def _check_source(source: Source, loaded: LoadedModel, *, labels: bool) -> None:
    convert = conversion(source, loaded, labels=labels)
    # Labels of a synthetic dataset fit its manifest, and those of class folders their names: nothing to check.
    if "label" in source.columns and source.manifest is None:
        for table in read_column(source, "label"):
            convert.labels(table)
    convert(read_first(source, COLUMNS))
    if convert.labels_note is not None:
        logger.warning(convert.labels_note)


def find_labeled(uri: str, loaded: LoadedModel, split: str | None = None) -> Source:
    """Find labeled images at a URI, and check them without a cluster.

    Args:
        uri: see `find_source`.
        loaded: the model that will read the images.
        split: which of several splits to read.

    Raises:
        DatasetError: there are none, or as `check_inputs`.
    """
    source = find_source(uri, split=split)
    _check_source(source, loaded, labels=True)
    repeated = repeated_id(source)
    if repeated is not None:
        # An id may name a photograph from which several rows are cut, so each row is scored.
        logger.warning(f"{source.uri!r} has more than one image with the image_id {repeated!r}: each of them is scored")
    return source


def conversion(source: Source, loaded: LoadedModel, *, labels: bool) -> "Convert":
    """Return the function that converts encoded rows of a source to a model's inputs.

    Raises:
        DatasetError: as `read_inputs`.
    """
    has_labels = "label" in source.columns
    if labels and not has_labels:
        raise DatasetError(f"{source.uri!r} has no labels: neither a column `label` nor class subfolders")
    _check_size(source, loaded)
    label_map, note = map_labels(source, loaded, needed=labels) if has_labels else (None, None)
    return Convert(
        uri=source.uri,
        size=loaded.input_size,
        mean=np.array(loaded.mean, np.float32),
        std=np.array(loaded.std, np.float32),
        num_classes=len(loaded.class_names),
        num_patches=num_patches(loaded),
        reads_subsets=refusal(loaded.model) is None,
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
        given, wanted = _size_text(size), _size_text(loaded.input_size)
        raise DatasetError(f"images of {source.uri!r} are {given}, model {loaded.name!r} reads {wanted}")


def _size_text(size: Sequence[int]) -> str:
    channels, height, width = size
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


@dataclass(frozen=True)
class Convert:
    """Converts encoded rows to inputs. It runs in Ray's tasks, so it carries only what it needs of the model."""

    uri: str
    size: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    num_classes: int
    num_patches: int
    reads_subsets: bool
    label_map: list[int] | None
    labels_note: str | None
    """Message for the user about the label map; None if there is none."""
    labels_needed: bool
    transform: Callable[[Image.Image], Tensor] | None

    def __call__(self, table: pa.Table) -> pa.Table:
        columns = {
            "label": self.labels(table),
            "keep_indices": self.keep_indices(table),
            "image_id": table["image_id"].combine_chunks(),
        }
        return with_tensors(pa.table(columns), {"pixels": self.pixels(table)})

    def pixels(self, table: pa.Table) -> list[np.ndarray]:
        """Decode the images: float32 [C, H, W], normalized.

        Raises:
            DatasetError: an image cannot be decoded, or a synthetic one has another size than the model reads.
        """
        names, codes = table["image_id"].to_pylist(), table["image"].to_pylist()
        return [self._decode(code, name) for code, name in zip(codes, names, strict=True)]

    def _decode(self, code: bytes, name: str) -> np.ndarray:
        if self.transform is not None:
            return self.transform(schema.open_image(code, name, self.uri)).numpy()
        pixels = schema.decode_image(code, name, self.uri)
        size = (pixels.shape[2], *pixels.shape[:2])
        if size != self.size:
            given, wanted = _size_text(size), _size_text(self.size)
            raise DatasetError(f"synthetic image {name!r} of {self.uri!r} is {given}, the model reads {wanted}")
        normalized = (pixels.astype(np.float32) / np.float32(255) - self.mean) / self.std
        return np.ascontiguousarray(normalized.transpose(2, 0, 1))

    def labels(self, table: pa.Table) -> pa.Array:
        """Return the model's labels, int64.

        Raises:
            DatasetError: a label has no class, or labels are needed and one is missing.
        """
        if "label" not in table.column_names:
            return pa.array([UNKNOWN] * len(table), pa.int64())
        if self.labels_needed and table["label"].null_count:
            raise DatasetError(f"{self.uri!r} has images without a label")
        labels = table["label"].fill_null(UNKNOWN).to_pylist()
        classes = self.num_classes if self.label_map is None else len(self.label_map)
        # Hugging Face marks test images with withheld labels by -1.
        lowest = 0 if self.labels_needed else UNKNOWN
        wrong = [label for label in labels if not lowest <= label < classes]
        if wrong:
            raise DatasetError(f"{self.uri!r} has label {wrong[0]}, there are {classes} classes")
        if self.label_map is not None:
            labels = [UNKNOWN if label == UNKNOWN else self.label_map[label] for label in labels]
        return pa.array(labels, pa.int64())

    def keep_indices(self, table: pa.Table) -> pa.Array:
        """Return the patches to read, a list of int64 per image.

        Raises:
            DatasetError: a patch lies outside the model's grid.
        """
        kind: Any = pa.list_(pa.int64())
        if "keep_indices" not in table.column_names:
            return pa.array([list(range(self.num_patches))] * len(table), kind)
        kept = table["keep_indices"].combine_chunks().cast(kind)
        largest = max(kept.flatten().to_pylist(), default=0)
        # Any other model reads the whole image.
        if self.reads_subsets and largest >= self.num_patches:
            raise DatasetError(f"{self.uri!r} keeps patch {largest}, the model has {self.num_patches} patches")
        return kept
