"""Read calibration images: ids for the plan, and for a worker decoded images, a few at a time."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset.collection import ImageCollection
from pipeline.dataset.conversion import Convert
from pipeline.dataset.open_files import OpenFiles
from pipeline.dataset.rows import neighbors_in_files, read_unit
from pipeline.dataset.units import Unit
from pipeline.inputs import read_units
from pipeline.models import LoadedModel
from pipeline.models.image_reader import num_patches
from pipeline.quantization.config import CalibrationConfig
from pipeline.vit.families import refusal


def whole_image(loaded: LoadedModel) -> int:
    """Return the number of patches in an image; a model without patches counts as one."""
    return num_patches(loaded) or 1


def calibration_reads_kept(config: CalibrationConfig, loaded: LoadedModel) -> bool:
    """Return whether only kept patches are read. If not, the images may lie on another patch grid than the model's."""
    return config.mode == "sparse" and refusal(loaded.model) is None


def read_patch_counts(images: ImageCollection, loaded: LoadedModel, *, dense: bool) -> list[tuple[str, int]]:
    """Return the id of each image and the number of its patches to read, in reading order. No image is decoded.

    Args:
        images: the images, as `find_images` returns them.
        loaded: the model that will read them.
        dense: whether all patches are read, even those that the images do not keep.

    Raises:
        DatasetError: a file cannot be read.
    """
    whole = whole_image(loaded)
    columns = ["image_id"] if dense else ["image_id", "keep_indices"]

    def index(neighbors: list[tuple[int, Unit]]) -> list[tuple[str, int]]:
        with OpenFiles() as files:
            tables = (read_unit(images.sources[number], unit, columns, files) for number, unit in neighbors)
            return [pair for table in chain.from_iterable(tables) for pair in _pairs(table, whole)]

    with ThreadPoolExecutor(storage.READ_THREADS) as threads:
        return [pair for pairs in threads.map(index, neighbors_in_files(images.units)) for pair in pairs]


def _pairs(table: pa.Table, whole: int) -> Iterator[tuple[str, int]]:
    ids = table["image_id"].to_pylist()
    counts = [whole] * len(ids)
    if "keep_indices" in table.column_names:
        lengths = pc.list_value_length(table["keep_indices"])  # pyright: ignore[reportAttributeAccessIssue]
        counts = lengths.fill_null(whole).to_pylist()
    return zip(map(str, ids), counts, strict=True)


def iterate_inputs(
    images: ImageCollection, loaded: LoadedModel, image_ids: Collection[str], *, reads_kept: bool | None = None
) -> Iterator[dict[str, Any]]:
    """Yield rows as `pipeline.inputs.read_inputs` does, in this process, decoding few images at a time.

    Args:
        images: the images, as `find_images` returns them.
        loaded: the model that will read them.
        image_ids: ids of the images to yield; others are skipped without being decoded.
        reads_kept: whether only the kept patches are read, as in `pipeline.inputs.read_inputs`.

    Raises:
        DatasetError: a file cannot be read, or an image cannot be decoded.
    """
    for convert, tables in read_units(images, loaded, labels=False, reads_kept=reads_kept):
        for table in tables:
            chosen = [row for row, image_id in enumerate(table["image_id"].to_pylist()) if str(image_id) in image_ids]
            if chosen:
                yield from _convert(convert, table.take(chosen))


def _convert(convert: Convert, table: pa.Table) -> Iterator[dict[str, Any]]:
    columns = (table["image_id"].to_pylist(), convert.pixels(table), convert.keep_indices(table).to_pylist())
    for image_id, pixels, kept in zip(*columns, strict=True):
        yield {"image_id": str(image_id), "pixels": pixels, "keep_indices": kept}
