"""Files of a synthetic dataset: parts, manifest, failure records, and which shards are done.

- `<output>/manifest.json`: the planned content of the dataset, and facts that all parts share, such as class names.
- `<output>/README.md`: the same for Hugging Face datasets, see `pipeline.dataset.own_card`.
- `<output>/data/part-NNNNN-<digest8>.parquet`: one per shard; it exists if and only if the shard is done. A compacted
  dataset has fewer and larger files, see `pipeline.dataset.part_files`.
- `<output>/failed/shard-NNNNN.json`: why a shard failed.
- `<output>/checkpoints/`: of shards that are being inverted, see `pipeline.synthesis.checkpoints`; readers pass it by.
- `<output>/.tmp/`: left over from killed local writes; the next run deletes them.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.dataset import schema
from pipeline.dataset.part_files import list_part_files, part_name, part_uri
from pipeline.errors import DatasetError, quoted

_FAILURE = re.compile(r"shard-(\d{5,})\.json")
_TEMPORARY = ".tmp"
MANIFEST = "manifest.json"
# Key of the manifest of a compacted dataset: how its parts were merged.
COMPACTION = "compaction"
# Keys of a manifest that some stage reads, with their types.
_MANIFEST: dict[str, type] = {
    "digest": str,
    "num_shards": int,
    "num_images": int,
    "class_names": list,
    "image_size": list,
    "teacher": dict,
}
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Missing shards are listed one by one, so a manifest that states more than these is an attack on memory, not a dataset.
_MOST = {"num_shards": 10**7, "num_images": 10**11}
_TEACHER: dict[str, type] = {"name": str, "weights_sha256": str}


@dataclass(frozen=True)
class Progress:
    """State of a dataset's shards according to its files.

    Attributes:
        parts: shard id → size in bytes of the file that holds its part, in order.
        failed: shard id → failure record, for shards that are not done.
        missing: ids of all other shards, which were not tried yet or are being worked on.
    """

    parts: dict[int, int]
    failed: dict[int, dict[str, Any]]
    missing: list[int]

    @property
    def done(self) -> list[int]:
        """Ids of the shards whose part exists."""
        return list(self.parts)

    @property
    def complete(self) -> bool:
        return not self.failed and not self.missing


def read_progress(output: str, num_shards: int, digest: str) -> Progress:
    """Compare the files of a dataset with what it should hold.

    Raises:
        DatasetError: files lie under `data/` that are not parts of this dataset.
    """
    parts = list_parts(output, digest)
    beyond = [shard_id for shard_id in parts if shard_id >= num_shards]
    if beyond:
        raise DatasetError(f"{output!r} has {num_shards} shards, but holds {part_name(beyond[0], digest)!r}")
    failed = find_failures(output, [each for each in failed_shards(output) if each not in parts and each < num_shards])
    missing = [shard_id for shard_id in range(num_shards) if shard_id not in parts and shard_id not in failed]
    return Progress(parts, failed, missing)


def find_failures(output: str, shard_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return shard id → failure record, for those of the given shards that have one.

    Raises:
        DatasetError: a file is no failure record, or storage kept failing to answer.
    """
    with ThreadPoolExecutor(storage.READ_THREADS) as threads:
        records = threads.map(lambda each: storage.with_retries(lambda: find_failure(output, each)), shard_ids)
        return {each: found for each, found in zip(shard_ids, records, strict=True) if found is not None}


def find_failure(output: str, shard_id: int) -> dict[str, Any] | None:
    """Return the failure record of a shard, if it has one.

    Raises:
        DatasetError: the file is no failure record, or cannot be read.
    """
    uri = _failure_uri(output, shard_id)
    try:
        record = storage.read_json(uri)
    except DatasetError:
        # A run that makes the shard after all may have removed its record at this moment.
        if storage.exists(uri):
            raise
        return None
    if not isinstance(record, dict) or not isinstance(record.get("reason"), str):
        raise DatasetError(f"{uri!r} is not the record of a failure: delete it")
    return record


def list_parts(output: str, digest: str) -> dict[int, int]:
    """Return shard id → bytes of the file that holds its part, for each part that exists, in order.

    Raises:
        DatasetError: as `list_part_files`.
    """
    return {shard_id: file.size for file in list_part_files(output, digest) for shard_id in file.shard_ids}


def part_exists(output: str, shard_id: int, digest: str) -> bool:
    """Return whether a shard is done, by this run or another.

    Raises:
        DatasetError: the storage cannot be read.
    """
    return storage.exists(part_uri(output, shard_id, digest))


def write_part(output: str, shard_id: int, digest: str, content: bytes) -> None:
    """Write a shard's part atomically, and delete the shard's failure record, if storage lets it.

    Raises:
        OSError: the part could not be written; nothing is left behind.
    """
    storage.write_bytes(part_uri(output, shard_id, digest), content, temporary_in=temporary_folder(output))
    # The part is there, and with it the record means nothing; the next run deletes it.
    with suppress(OSError):
        storage.remove(_failure_uri(output, shard_id))


def write_failure(output: str, shard_id: int, record: Mapping[str, Any]) -> None:
    """Record why a shard could not be done.

    Args:
        record: why it failed: `error` (name of the error's type), `reason` (one line), and anything that helps to
            investigate.

    Raises:
        OSError: it could not be written.
    """
    _write_json(output, _failure_uri(output, shard_id), {"shard_id": shard_id, **record})


def failed_shards(output: str) -> list[int]:
    """Return the ids of the shards that have a failure record."""
    names = storage.list_files(storage.join(output, "failed"))
    return sorted(int(match[1]) for match in map(_FAILURE.fullmatch, names) if match)


def remove_failure(output: str, shard_id: int) -> None:
    storage.remove(_failure_uri(output, shard_id))


def clear_temporaries(output: str) -> None:
    """Delete what killed writes left behind. A write that is still in progress fails and is retried by its writer."""
    storage.remove_temporaries(temporary_folder(output))


def read_manifest(output: str) -> dict[str, Any]:
    """Return the manifest of a dataset.

    Raises:
        DatasetError: the dataset has no manifest, or one that is incomplete or not from this software.
    """
    uri = manifest_uri(output)
    manifest = storage.read_json(uri)
    if not isinstance(manifest, dict):
        raise DatasetError(f"{uri!r} is not a manifest of this software, but a {type(manifest).__name__}")
    version = manifest.get("schema_version")
    if version not in schema.READABLE_VERSIONS:
        raise DatasetError(f"{uri!r} has schema version {version!r}, this software reads {schema.READABLE_VERSIONS}")
    _check_keys(uri, manifest, _MANIFEST)
    _check_keys(uri, manifest["teacher"], _TEACHER, "teacher.")
    if [type(side) for side in manifest["image_size"]] != [int] * 3 or min(manifest["image_size"]) < 1:
        raise DatasetError(f"{uri!r} has {quoted(manifest['image_size'])} as 'image_size', it must be [C, H, W]")
    for name in ("num_shards", "num_images"):
        if isinstance(manifest[name], bool) or not 0 <= manifest[name] <= _MOST[name]:
            raise DatasetError(f"{uri!r} has {manifest[name]!r:.40} as {name!r}, it must lie in 0 to {_MOST[name]}")
    if _DIGEST.fullmatch(manifest["digest"]) is None:
        raise DatasetError(f"{uri!r} has {quoted(manifest['digest'])} as 'digest', it must be 64 hexadecimal digits")
    if not all(isinstance(name, str) for name in manifest["class_names"]):
        raise DatasetError(f"{uri!r} has class names that are not texts: {quoted(manifest['class_names'])}")
    return manifest


def _check_keys(uri: str, values: Mapping[str, Any], kinds: Mapping[str, type], prefix: str = "") -> None:
    for name, kind in kinds.items():
        if name not in values:
            raise DatasetError(f"{uri!r} is an incomplete manifest: it has no {prefix + name!r}")
        if not isinstance(values[name], kind):
            raise DatasetError(f"{uri!r} has {quoted(values[name])} as {prefix + name!r}, it must be {kind.__name__}")


def write_manifest(output: str, manifest: Mapping[str, Any]) -> None:
    _write_json(output, manifest_uri(output), dict(manifest))


def manifest_uri(output: str) -> str:
    return storage.join(output, MANIFEST)


def write_images(
    uri: str,
    images: np.ndarray | Sequence[np.ndarray],
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    image_ids: Sequence[str] | None = None,
    row_group_size: int = 128,
) -> None:
    """Write labeled images of any origin as one Parquet file that this and other software can read.

    Args:
        uri: location of the file.
        images: pictures, uint8 [H, W, C] each, with 1 or 3 channels.
        labels: class of each image, as a number.
        class_names: names of labels 0, 1, 2, ...
        image_ids: names of the images, all different; by default numbers.
        row_group_size: number of rows that are read together.

    Raises:
        DatasetError: counts differ, labels are no whole numbers or have no name, names or ids are no texts, ids repeat,
            images have another type or no pixels, or the file could not be written.
    """
    names = (
        [f"{row:06d}" for row in range(len(images))] if image_ids is None else schema.texts(uri, "image_ids", image_ids)
    )
    class_names = schema.texts(uri, "class_names", class_names)
    values = [_whole(uri, label) for label in labels]
    if not len(images) == len(values) == len(names):
        raise DatasetError(f"{uri!r}: {len(images)} images, {len(values)} labels, {len(names)} ids")
    unnamed = sorted({label for label in values if not 0 <= label < len(class_names)})
    if unnamed:
        raise DatasetError(f"{uri!r}: label {unnamed[0]} has no name, there are {len(class_names)} class names")
    if len(set(names)) != len(names):
        raise DatasetError(f"{uri!r}: image ids repeat")
    columns = {"image": schema.image_column(list(images), names), "label": values, "image_id": names}
    table = pa.table(columns, schema=schema.arrow_schema(class_names, columns=list(columns)))
    try:
        storage.write_bytes(uri, schema.to_parquet(table, row_group_size=row_group_size))
    except OSError as error:
        raise DatasetError(f"cannot write {uri!r}: {type(error).__name__}: {error}") from error


def _whole(uri: str, label: Any) -> int:
    try:
        return operator.index(label)
    except TypeError as error:
        raise DatasetError(f"{uri!r}: a label must be a whole number, not {label!r}") from error


def _failure_uri(output: str, shard_id: int) -> str:
    return storage.join(output, "failed", f"shard-{shard_id:05d}.json")


def temporary_folder(output: str) -> str:
    """Return where writers of a dataset keep temporary files of local writes."""
    return storage.join(output, _TEMPORARY)


def _write_json(output: str, uri: str, value: dict[str, Any]) -> None:
    storage.write_json(uri, value, temporary_in=temporary_folder(output))
