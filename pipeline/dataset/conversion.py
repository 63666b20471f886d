"""Turn encoded rows into a model's inputs, in Ray's tasks. Imports no torch, for each process would take a gigabyte."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    reads_kept: bool
    """Whether kept patches are read alone."""
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
            DatasetError: labels are needed, and one is missing or has no class.
        """
        if "label" not in table.column_names:
            return pa.array([UNKNOWN] * len(table), pa.int64())
        if self.labels_needed and table["label"].null_count:
            raise DatasetError(f"{self.uri!r} has images without a label")
        labels = table["label"].fill_null(UNKNOWN).to_pylist()
        classes = self.num_classes if self.label_map is None else len(self.label_map)
        wrong = [label for label in labels if not 0 <= label < classes]
        if wrong and self.labels_needed:
            raise DatasetError(f"{self.uri!r} has label {wrong[0]}, there are {classes} classes")
        of = range(classes) if self.label_map is None else self.label_map
        # Hugging Face marks test images with withheld labels by -1.
        return pa.array([of[label] if 0 <= label < classes else UNKNOWN for label in labels], pa.int64())

    def keep_indices(self, table: pa.Table) -> pa.Array:
        """Return the patches to read, a list of int64 per image; all of them where an image does not say which.

        Raises:
            DatasetError: they are no numbers of patches; or an image keeps none, or one outside the model's grid, and
                kept patches are read alone. The message names the image.
        """
        every, kind = list(range(self.num_patches)), pa.list_(pa.int64())
        if "keep_indices" not in table.column_names:
            return pa.array([every] * len(table), kind)
        kept = table["keep_indices"].to_pylist()
        for name, indices in zip(table["image_id"].to_pylist(), kept, strict=True):
            if indices is not None:
                self._check_kept(name, indices)
        return pa.array([every if indices is None else indices for indices in kept], kind)

    def _check_kept(self, name: str, indices: list[int | None]) -> None:
        numbers = [index for index in indices if index is not None]
        wrong = next((index for index in indices if index is None or index < 0), 0)
        if wrong != 0:
            keeps = f"patch {wrong}, which is no number of a patch" if wrong else "a patch without a number (null)"
        elif self.reads_kept and not numbers:
            keeps = "no patch"
        # Where the whole image is read, another grid does not matter.
        elif self.reads_kept and max(numbers) >= self.num_patches:
            keeps = f"patch {max(numbers)}, the model has {self.num_patches} patches"
        else:
            return
        raise DatasetError(f"image {name!r} of {self.uri!r} keeps {keeps}")


def size_text(size: Sequence[int]) -> str:
    """Return channels, height and width in words."""
    channels, height, width = size
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
