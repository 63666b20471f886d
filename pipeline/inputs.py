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

# What is read of each source, where it has it.
COLUMNS = ("image_id", "image", "label", "keep_indices")
# A process that decodes images takes longer to start than to decode these.
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

    Synthetic images are only normalized: they lie on the teacher's patch grid. Real ones go through the evaluation
    transform of the model's own config. Labels map by class name where the source's names are the model's. Where none
    is, they go by number if labels are needed and there are equally many classes, and are -1 if they are not needed.
    Where a source knows no label it is -1; where it knows no `keep_indices` these are all patches.

    Args:
        images: a URI or several, as `pipeline.dataset.read_images` takes them; or what `find_source` or `find_images`
            found there, of a split say, perhaps with fewer of its units or in another order.
        loaded: the model that is to read them.
        labels: whether labels are needed.
        override_num_blocks: into how many blocks to read, for parallelism; by default few where there are few images.

    Raises:
        DatasetError: as `read_images`; synthetic images of another size or patch grid than the model's; no labels
            though they are needed, or labels that are not the model's.
    """
    if isinstance(images, Source):
        images = ImageCollection.of(images)
    elif not isinstance(images, ImageCollection):
        images = find_images(images)
    converts = [conversion(source, loaded, labels=labels) for source in images.sources]
    num_blocks = override_num_blocks or _few_blocks(images)
    return read_collection(images, columns=COLUMNS, converts=converts, num_blocks=num_blocks)


def check_inputs(images: ImageCollection, loaded: LoadedModel, *, labels: bool = False) -> None:
    """Check without a cluster what reading would stumble over hours later: all ids and labels, and the first images.

    One line on standard error says so where labels go by number, with the classes that are taken to be the same.

    Args:
        images: what was found at one or several URIs.
        loaded: the model that is to read them.
        labels: whether labels are needed.

    Raises:
        DatasetError: as `read_inputs`; or two images of one source have one id, a label has no class, or the first
            image of a source cannot be decoded.
    """
    for source in images.sources:
        _check_source(source, loaded, labels=labels)
        repeated = repeated_id(source)
        if repeated is not None:
            raise DatasetError(
                f"{source.uri!r} has more than one image of the image_id {repeated!r}: if these are several datasets, "
                "give the URI of each in a list"
            )


def _check_source(source: Source, loaded: LoadedModel, *, labels: bool) -> None:
    convert = conversion(source, loaded, labels=labels)
    # What a synthesis writes has the labels of its manifest, and folders have those of their names.
    if "label" in source.columns and source.manifest is None:
        for table in read_column(source, "label"):
            convert.labels(table)
    convert(read_first(source, COLUMNS))
    if convert.labels_note is not None:
        logger.warning(convert.labels_note)


def find_labeled(uri: str, loaded: LoadedModel, split: str | None = None) -> Source:
    """Find labeled images at a URI, and check them without a cluster.

    Args:
        uri: as `find_source` takes it.
        loaded: the model that is to read them.
        split: which of several splits to read.

    Raises:
        DatasetError: there are none, or as `check_inputs`.
    """
    source = find_source(uri, split=split)
    _check_source(source, loaded, labels=True)
    repeated = repeated_id(source)
    if repeated is not None:
        # An id may name a photograph that several rows are cut from: each row is scored.
        logger.warning(f"{source.uri!r} has more than one image of the image_id {repeated!r}: each of them is scored")
    return source


def conversion(source: Source, loaded: LoadedModel, *, labels: bool) -> "Convert":
    """Return what makes encoded rows of a source a model's input.

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
    """Return blocks for few images, for which Ray would start a process on every core; None leaves it to Ray."""
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
    """Encoded rows → inputs. Runs in Ray's tasks: it carries what it needs, and not the model."""

    uri: str
    size: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    num_classes: int
    num_patches: int
    reads_subsets: bool
    label_map: list[int] | None
    labels_note: str | None
    """What a user is to be told of the label map."""
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
            DatasetError: one cannot be decoded, or a synthetic one is of another size than the model's.
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
        """The model's labels, int64.

        Raises:
            DatasetError: one has no class, or one is needed and not there.
        """
        if "label" not in table.column_names:
            return pa.array([UNKNOWN] * len(table), pa.int64())
        if self.labels_needed and table["label"].null_count:
            raise DatasetError(f"{self.uri!r} has images without a label")
        labels = table["label"].fill_null(UNKNOWN).to_pylist()
        classes = self.num_classes if self.label_map is None else len(self.label_map)
        # Hugging Face marks the images of a test set whose labels are withheld with -1.
        lowest = 0 if self.labels_needed else UNKNOWN
        wrong = [label for label in labels if not lowest <= label < classes]
        if wrong:
            raise DatasetError(f"{self.uri!r} has label {wrong[0]}, there are {classes} classes")
        if self.label_map is not None:
            labels = [UNKNOWN if label == UNKNOWN else self.label_map[label] for label in labels]
        return pa.array(labels, pa.int64())

    def keep_indices(self, table: pa.Table) -> pa.Array:
        """Return the patches to read, a list of int64 for each image.

        Raises:
            DatasetError: one lies outside the model's grid.
        """
        kind: Any = pa.list_(pa.int64())
        if "keep_indices" not in table.column_names:
            return pa.array([list(range(self.num_patches))] * len(table), kind)
        kept = table["keep_indices"].combine_chunks().cast(kind)
        largest = max(kept.flatten().to_pylist(), default=0)
        # Any other model takes the pixels as they are.
        if self.reads_subsets and largest >= self.num_patches:
            raise DatasetError(f"{self.uri!r} keeps patch {largest}, the model has {self.num_patches} patches")
        return kept
