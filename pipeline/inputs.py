"""Images of any origin as a model's input: what calibration, distillation and evaluation read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from PIL import Image
from torch import Tensor

from pipeline.dataset import schema
from pipeline.dataset.classes import doubtful_order
from pipeline.dataset.collection import ImageCollection, find_images
from pipeline.dataset.reader import read_collection, with_tensors
from pipeline.dataset.rows import read_column, read_first, repeated_id
from pipeline.dataset.sources import Source, find_source
from pipeline.errors import DatasetError, warn
from pipeline.labels import match_classes, only_spelled_otherwise
from pipeline.models import LoadedModel, RealImageTransform
from pipeline.models.image_reader import num_patches
from pipeline.vit.families import refusal

UNKNOWN = -1
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
    _, told = _map_labels(source, loaded, needed=labels)
    if told is not None:
        warn(told)


def find_labelled(uri: str, loaded: LoadedModel, split: str | None = None) -> Source:
    """Find labelled images at a URI, and check them without a cluster.

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
        warn(f"{source.uri!r} has more than one image of the image_id {repeated!r}: each of them is scored")
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
    return Convert(
        uri=source.uri,
        size=loaded.input_size,
        mean=np.array(loaded.mean, np.float32),
        std=np.array(loaded.std, np.float32),
        num_classes=len(loaded.class_names),
        num_patches=num_patches(loaded),
        reads_subsets=refusal(loaded.model) is None,
        label_map=_map_labels(source, loaded, needed=labels)[0] if has_labels else None,
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


def _map_labels(source: Source, loaded: LoadedModel, *, needed: bool) -> tuple[list[int] | None, str | None]:
    """Return the model's label for each of the source's, and what is to be told about them.

    None instead of labels where the source's are numbers without names, and are the model's.

    Raises:
        DatasetError: labels are needed, and the source's classes cannot be found among the model's.
    """
    names, own = source.class_names, loaded.class_names
    if names is None:
        return None, None
    found = match_classes(names, own)
    labels = [UNKNOWN if label is None else label for label in found]
    unknown = [name for name, label in zip(names, found, strict=True) if label is None]
    if not unknown or not needed:
        return labels, None
    if only_spelled_otherwise(names, found, own):
        told = f"the classes {_pairs(names, own, [names.index(name) for name in unknown])} are taken to be the same"
        return list(range(len(names))), f"{source.uri!r} and model {loaded.name!r}: {told}"
    _check_by_number(source, loaded, found)
    told = f"no class of {source.uri!r} is called as one of model {loaded.name!r}: labels go by number"
    return list(range(len(names))), f"{told}: {_pairs(names, own, range(len(names)))}"


def _check_by_number(source: Source, loaded: LoadedModel, found: Sequence[int | None]) -> None:
    """Refuse labels that cannot go by number.

    Raises:
        DatasetError: some names of the classes match, the numbers of classes differ, or nothing tells the order.
    """
    names, own = source.class_names or [], loaded.class_names
    remedy = "name the classes as the model does, or set the model's class_names to names of these in its own order"
    unknown = next(name for name, label in zip(names, found, strict=True) if label is None)
    known = next((name for name, label in zip(names, found, strict=True) if label is not None), None)
    if known is not None:
        raise DatasetError(
            f"{source.uri!r} has the class {unknown!r}, which model {loaded.name!r} lacks or has more than once, "
            f"though it has {known!r}: {remedy}"
        )
    if len(names) != len(own):
        raise DatasetError(
            f"{source.uri!r} has {len(names)} classes, {_some(names)}, model {loaded.name!r} has {len(own)}, "
            f"{_some(own)}, and no name is the same, so no label is known: {remedy}"
        )
    doubtful = doubtful_order(names) if source.of_folders else None
    if doubtful is not None:
        raise DatasetError(
            f"{source.uri!r}: no class folder is called as a class of model {loaded.name!r}, and their order is not "
            f"known: {doubtful[0]!r} and {doubtful[1]!r} are sorted differently by torchvision and by timm: {remedy}"
        )


def _pairs(names: Sequence[str], own: Sequence[str], labels: Sequence[int]) -> str:
    """Return what the first labels mean on both sides."""
    pairs = [f"{names[label]!r} is {own[label]!r}" for label in labels[:3]]
    return ", ".join([*pairs, "..."] if len(labels) > 3 else pairs)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*map(repr, names[:2]), "..."])


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
