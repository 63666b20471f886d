"""Turn encoded rows into a model's inputs, in Ray's tasks. Imports no torch, for each process would take a gigabyte."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.dataset import schema
from pipeline.dataset.reader import with_tensors
from pipeline.dataset.schema import UNKNOWN
from pipeline.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor


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
    transform: "Callable[[Image.Image], Tensor] | None"

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
            given, wanted = size_text(size), size_text(self.size)
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


def size_text(size: Sequence[int]) -> str:
    """Return channels, height and width in words."""
    channels, height, width = size
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
