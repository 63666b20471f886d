"""The Parquet contract: the columns of a part file, how images are encoded, and what its metadata says."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.dataset.decoding import UnreadableImageError, decode
from pipeline.errors import DatasetError

SCHEMA_VERSION = 1

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = {
    "image": IMAGE,
    "label": pa.int64(),
    "keep_indices": pa.list_(pa.int16()),
    "image_id": pa.string(),
    "shard_id": pa.int32(),
    "class_loss": pa.float32(),
    "teacher_confidence": pa.float32(),
    "teacher_prediction": pa.int64(),
}
# keep_indices is stored in 16 bits.
MAX_PATCHES = 2**15


def arrow_schema(
    class_names: Sequence[str], *, columns: Sequence[str] | None = None, metadata: Mapping[str, str] | None = None
) -> pa.Schema:
    """The Arrow schema of a part, or of some of its columns, marked up for Hugging Face datasets.

    Args:
        class_names: names of labels 0, 1, 2, ...
        columns: by default all.
        metadata: further facts for the file's metadata.
    """
    names = list(COLUMNS if columns is None else columns)
    features = {name: _feature(name, class_names) for name in names}
    marks = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, COLUMNS[name]) for name in names], metadata={**marks, **(metadata or {})})


def _feature(name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """How Hugging Face datasets describe a column."""
    if name == "image":
        return {"_type": "Image"}
    if name == "label":
        return {"names": list(class_names), "_type": "ClassLabel"}
    if pa.types.is_list(COLUMNS[name]):
        # Spelled so that every version reads it; since datasets 4 it is named List.
        return {"feature": {"dtype": str(COLUMNS[name].value_type), "_type": "Value"}, "_type": "Sequence"}
    dtype = {"float": "float32"}.get(str(COLUMNS[name]), str(COLUMNS[name]))
    return {"dtype": dtype, "_type": "Value"}


def class_names_of(schema: pa.Schema) -> list[str] | None:
    """The names that a file's Hugging Face metadata gives to the values of `label`; None where it gives none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def encode_image(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W, C] with 1 or 3 channels; the same pixels give the same bytes, for no time is stored."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DatasetError(f"an image must be uint8 [H, W, 1 or 3], not {pixels.dtype} {list(pixels.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def open_image(encoded: bytes, name: str, uri: str | None = None) -> Image.Image:
    """Return a decoded picture of mode L or RGB, whatever it was stored as, by the rules of `decoding.decode`.

    Args:
        encoded: bytes of an image file, of any format in `decoding.FORMATS`.
        name: of the image, for the message.
        uri: what it was read from, likewise.

    Raises:
        DatasetError: it is not an image, truncated, or absurdly large, or a rule refuses it.
    """
    try:
        return decode(encoded)
    except UnreadableImageError as error:
        place = "" if uri is None else f" of {uri!r}"
        raise DatasetError(f"image {name!r}{place} cannot be decoded: {error}") from error


def decode_image(encoded: bytes, name: str, uri: str | None = None) -> np.ndarray:
    """Return uint8 [H, W, C] of an encoded image, C being 1 for gray and 3 for color.

    Raises:
        DatasetError: as `open_image`.
    """
    pixels = np.asarray(open_image(encoded, name, uri))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def image_column(images: Sequence[np.ndarray], image_ids: Sequence[str]) -> pa.Array:
    """Pictures as the contract's `image` column.

    Args:
        images: uint8 [H, W, C] each.
        image_ids: as many.
    """
    rows = [{"bytes": encode_image(x), "path": f"{name}.png"} for x, name in zip(images, image_ids, strict=True)]
    return pa.array(rows, IMAGE)


def to_parquet(table: pa.Table, *, row_group_size: int | None = None) -> bytes:
    """A table as the bytes of a Parquet file: zstd, and the same table gives the same bytes.

    Args:
        row_group_size: rows that are read together; by default all.
    """
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=row_group_size or max(1, len(table)),
        # PNG does not repeat itself, and its extremes tell nobody anything.
        use_dictionary=False,
        write_statistics=[name for name in table.column_names if name != "image"],  # type: ignore[arg-type]
    )
    return buffer.getvalue()
