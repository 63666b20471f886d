"""The Parquet contract: columns, image encoding and metadata of a part file."""

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.dataset.classes import stated_names
from pipeline.dataset.decoding import UnreadableImageError, decode
from pipeline.documents import parse_json
from pipeline.errors import DatasetError
from pipeline.pictures import PICTURE_CHANNELS, as_picture

SCHEMA_VERSION = 2
# Version 1 has the class names in every part. A dataset keeps the version that it was started with.
READABLE_VERSIONS = (1, 2)
# Class names that take more than this as JSON are left out of all parts but the first. Files hold them 2.3 times:
# Arrow repeats a schema's metadata, in base64.
MAX_NAMES_BYTES = 4096

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
# Those columns that only a synthesis fills in. No job makes a model's input from them.
ABOUT_SYNTHESIS = ("shard_id", "class_loss", "teacher_confidence", "teacher_prediction")
# keep_indices is stored in 16 bits.
MAX_PATCHES = 2**15
# Keys of a file's metadata: Hugging Face's own, and ours.
_MARKS, _NAMES_DIGEST = b"huggingface", b"class_names_sha256"
_PNG = b"\x89PNG\r\n\x1a\n"
# Label of an image whose class is unknown or withheld, as in Hugging Face's datasets.
UNKNOWN = -1


def arrow_schema(
    class_names: Sequence[str] | None,
    *,
    columns: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> pa.Schema:
    """Return the Arrow schema of a part, or of some of its columns, marked up for Hugging Face datasets.

    Args:
        class_names: names of labels 0, 1, 2, ...; None marks labels as plain numbers.
        columns: columns of the contract to include; by default all.
        metadata: further facts for the file's metadata, as texts.
    """
    names = list(COLUMNS if columns is None else columns)
    features = {name: _feature(name, class_names) for name in names}
    marks = {_MARKS.decode(): json.dumps({"info": {"features": features}})}
    return pa.schema([(name, COLUMNS[name]) for name in names], metadata={**marks, **(metadata or {})})


def part_schema(
    class_names: Sequence[str],
    shard_id: int,
    *,
    metadata: Mapping[str, str] | None = None,
    version: int = SCHEMA_VERSION,
) -> pa.Schema:
    """Return the Arrow schema of a shard's part, which depends only on the arguments.

    Class names are facts of the dataset, so the manifest holds them, and every part holds their digest. If the names
    are short (`MAX_NAMES_BYTES`), every part holds them too; otherwise only the part of shard 0, where Hugging Face
    datasets looks for them.

    Args:
        class_names: names of labels 0, 1, 2, ...
        shard_id: number of the part's shard.
        metadata: further facts for the file's metadata, as texts.
        version: version of the dataset's contract. With version 1 every part holds all names, and no digest of them.
    """
    if version == 1:
        return arrow_schema(class_names, metadata=metadata)
    few = len(json.dumps(list(class_names))) <= MAX_NAMES_BYTES
    facts = {**(metadata or {}), _NAMES_DIGEST.decode(): names_digest(class_names)}
    return arrow_schema(class_names if few or shard_id == 0 else None, metadata=facts)


def names_digest(class_names: Sequence[str]) -> str:
    """Return the SHA-256, in hex, of class names in their order."""
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def _feature(name: str, class_names: Sequence[str] | None) -> dict[str, Any]:
    """Return how Hugging Face datasets describes a column."""
    if name == "image":
        return {"_type": "Image"}
    if name == "label" and class_names is not None:
        return {"names": list(class_names), "_type": "ClassLabel"}
    if pa.types.is_list(COLUMNS[name]):
        # The old spelling, which every version reads; since datasets 4 the type is named List.
        return {"feature": {"dtype": _dtype(COLUMNS[name].value_type), "_type": "Value"}, "_type": "Sequence"}
    return {"dtype": _dtype(COLUMNS[name]), "_type": "Value"}


def _dtype(kind: pa.DataType) -> str:
    return {"float": "float32"}.get(str(kind), str(kind))


def card_features(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the columns as the YAML header of a Hugging Face dataset card lists them."""
    kinds: dict[str, Any] = {
        "image": {"dtype": "image"},
        "label": {"dtype": {"class_label": {"names": {str(label): name for label, name in enumerate(class_names)}}}},
    }
    for name, kind in COLUMNS.items():
        if name not in kinds:
            kinds[name] = {"sequence": _dtype(kind.value_type)} if pa.types.is_list(kind) else {"dtype": _dtype(kind)}
    return [{"name": name, **kinds[name]} for name in COLUMNS]


def class_names_of(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...] | None:
    """Return the names that a file's Hugging Face metadata gives to the values of `label`; None if it gives none.

    Files of a dataset repeat the same names, so they share one tuple.
    """
    marks = (metadata or {}).get(_MARKS)
    return None if marks is None else _names_in(marks)


@lru_cache(maxsize=2)
def _names_in(marks: bytes) -> tuple[str, ...] | None:
    try:
        names = stated_names(parse_json(marks)["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return None
    return None if names is None else tuple(names)


def names_digest_of(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """Return the digest of a file's class names, even if it holds only the digest; None if it holds neither."""
    stated = (metadata or {}).get(_NAMES_DIGEST)
    if stated is not None:
        return stated.decode(errors="replace")
    names = class_names_of(metadata)
    return None if names is None else _digest_of_tuple(names)


# Many files share one tuple of names; its digest is computed once.
_digest_of_tuple = lru_cache(maxsize=2)(names_digest)


def encode_image(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, C] with 1 or 3 channels as PNG. The same pixels give the same bytes: no time is stored."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in PICTURE_CHANNELS or not pixels.size:
        raise DatasetError(f"an image must be uint8 [H, W, 1 or 3], not {pixels.dtype} {list(pixels.shape)}")
    buffer = io.BytesIO()
    as_picture(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def texts(uri: str, name: str, values: Sequence[str]) -> list[str]:
    """Return names as a list; a text would be read letter by letter, and a mapping for its keys.

    Raises:
        DatasetError: the names are no list of texts.
    """
    if isinstance(values, str | Mapping) or not all(isinstance(value, str) for value in values):
        raise DatasetError(f"{uri!r}: {name} must be a list of texts, not {values!r:.80}")
    return list(values)


def is_whole_png(encoded: bytes | memoryview) -> bool:
    """Return whether bytes are a PNG file to its end, with the checksums that it states; no pixel is decoded."""
    encoded = memoryview(encoded)
    if bytes(encoded[: len(_PNG)]) != _PNG:
        return False
    start = len(_PNG)
    # A chunk: 4 bytes for its length, 4 for its kind, its content, and 4 for the checksum of kind and content.
    while start + 12 <= len(encoded):
        kind, end = start + 4, start + 8 + int.from_bytes(encoded[start : start + 4])
        if zlib.crc32(encoded[kind:end]) != int.from_bytes(encoded[end : end + 4]):
            return False
        start = end + 4
        if encoded[kind : kind + 4] == b"IEND":
            return start == len(encoded)
    return False


def open_image(encoded: bytes, name: str, uri: str | None = None) -> Image.Image:
    """Return a decoded picture of mode L or RGB, whatever it was stored as, by the rules of `decoding.decode`.

    Args:
        encoded: content of an image file, of any format in `decoding.FORMATS`.
        name: name of the image, for messages.
        uri: location that the image was read from, for messages.

    Raises:
        DatasetError: it is not an image, is truncated or far too large, or a rule refuses it.
    """
    try:
        return decode(encoded)
    except UnreadableImageError as error:
        where = "" if uri is None else f" of {uri!r}"
        raise DatasetError(f"image {name!r}{where} cannot be decoded: {error}") from error


def decode_image(encoded: bytes, name: str, uri: str | None = None) -> np.ndarray:
    """Return uint8 [H, W, C] of an encoded image, C being 1 for gray and 3 for color.

    Raises:
        DatasetError: as `open_image`.
    """
    pixels = np.asarray(open_image(encoded, name, uri))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def image_column(images: Sequence[np.ndarray], image_ids: Sequence[str]) -> pa.Array:
    """Build the contract's `image` column from pictures.

    Args:
        images: pictures, uint8 [H, W, C] each.
        image_ids: name of each image.
    """
    rows = [{"bytes": encode_image(x), "path": f"{name}.png"} for x, name in zip(images, image_ids, strict=True)]
    return pa.array(rows, IMAGE)


def parquet_options(columns: Sequence[str]) -> dict[str, Any]:
    """Return how `pyarrow.parquet` is to write a file of some columns: with zstd."""
    # A dictionary or statistics of PNG bytes would be of no use.
    statistics = [name for name in columns if name != "image"]
    return {"compression": "zstd", "use_dictionary": False, "write_statistics": statistics}


def to_parquet(table: pa.Table, *, row_group_size: int | None = None) -> bytes:
    """Write a table as the bytes of a Parquet file, with zstd. The same table gives the same bytes.

    Args:
        row_group_size: number of rows that are read together; by default all.
    """
    buffer = io.BytesIO()
    options = parquet_options(table.column_names)
    pq.write_table(table, buffer, row_group_size=row_group_size or max(1, len(table)), **options)
    return buffer.getvalue()
