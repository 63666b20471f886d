"""Check a compaction before it starts, and decide which parts go into which file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.compaction.config import CompactionConfig
from pipeline.compaction.merging import Merger
from pipeline.config import digest as digest_of
from pipeline.credentials import redacted
from pipeline.dataset import store
from pipeline.dataset.damage import damaged_parts
from pipeline.dataset.discovery import is_synthetic
from pipeline.dataset.index import complete_index, load_index, parts_without_row
from pipeline.dataset.part_files import list_part_files, part_uri
from pipeline.errors import ConfigError, DatasetError
from pipeline.outputs import check_same_settings
from pipeline.outputs.owners import check_output, check_place, whole_path


@dataclass(frozen=True)
class CompactionPlan:
    """A compaction whose dataset and output were checked.

    Attributes:
        manifest: manifest of the compacted dataset: that of the dataset, and how its parts are merged.
        progress: which shards the dataset holds.
        index: index of the dataset, with a row for each part.
        files: ids of the shards in each file, in order.
        merger: what workers write the files with.
    """

    manifest: dict[str, Any]
    progress: store.Progress
    index: pa.Table
    files: list[range]
    merger: Merger

    @property
    def num_missing(self) -> int:
        """Number of the dataset's shards that have no part."""
        return len(self.progress.missing) + len(self.progress.failed)


def plan_compaction(config: CompactionConfig) -> CompactionPlan:
    """Check everything that can be checked without reading images.

    Raises:
        ConfigError: images and output are not two folders that all machines see.
        DatasetError: images are no synthetic dataset, an incomplete or a damaged one; or the output holds something
            else.
    """
    images, output = storage.absolute(config.images), storage.absolute(config.output)
    _check_places(images, output)
    check_output(output, "compact")
    manifest = _read_manifest(images)
    digest = manifest["digest"]
    progress = store.read_progress(images, manifest["num_shards"], digest)
    _check_complete(images, progress, manifest["num_shards"], allow_incomplete=config.allow_incomplete)
    index = complete_index(images, digest, load_index(images, digest), progress.parts)
    _check_parts(images, digest, progress, index)
    files = list(group_parts(progress.parts, config.file_bytes))
    compaction = {
        "file_bytes": config.file_bytes,
        "num_files": len(files),
        "num_parts": len(progress.parts),
        "parts_sha256": digest_of({"parts": [list(part) for part in progress.parts.items()]}),
    }
    manifest = {**manifest, store.COMPACTION: compaction}
    _check_output_files(output, manifest, files)
    merger = Merger(images, output, digest, manifest["schema_version"], manifest["class_names"])
    return CompactionPlan(manifest, progress, index, files, merger)


def group_parts(sizes: Mapping[int, int], file_bytes: int) -> Iterator[range]:
    """Yield the shards of each file: as many neighboring parts as fit, at least one. A missing shard ends a file.

    Args:
        sizes: shard id → size of its part in bytes, in order.
        file_bytes: largest size of a file, in bytes.
    """
    start = stop = total = 0
    for shard_id, size in sizes.items():
        if stop > start and (shard_id != stop or total + size > file_bytes):
            yield range(start, stop)
            start, total = shard_id, 0
        elif stop == start:
            start = shard_id
        stop, total = shard_id + 1, total + size
    if stop > start:
        yield range(start, stop)


def _check_places(images: str, output: str) -> None:
    check_place(output, shared=True)
    if storage.in_memory(images):
        raise ConfigError(f"images {images!r} are in the memory of this process: workers need a folder or object store")
    one, other = (whole_path(uri) for uri in (images, output))
    if one.startswith(other) or other.startswith(one):
        raise ConfigError(
            f"output {output!r} and images {images!r} lie in each other: give the output a folder of its own"
        )


def _check_output_files(output: str, manifest: dict[str, Any], files: list[range]) -> None:
    """Refuse an output that holds another compaction, or files that do not belong to this one.

    Raises:
        DatasetError: the output holds something else.
    """
    uri = store.manifest_uri(output)
    if storage.exists(uri):
        check_same_settings(output, "compact", storage.read_json(uri), manifest)
    planned = set(files)
    for file in list_part_files(output, manifest["digest"]):
        if file.shard_ids not in planned:
            raise DatasetError(
                f"output {output!r} holds {file.name!r}, which is not of this compaction: empty it first"
            )


def _read_manifest(images: str) -> dict[str, Any]:
    """Return the manifest of a dataset that can be compacted, without credentials that earlier versions wrote there."""
    if not storage.exists(images):
        missing = f"there is no such file or folder{storage.why_missing(images)}"
        raise DatasetError(f"{images!r} is no synthetic dataset: {missing}")
    if not is_synthetic(images):
        raise DatasetError(
            f"{images!r} is no synthetic dataset: only the output of jobs.synthesize, with its manifest.json, can be "
            "compacted"
        )
    manifest = store.read_manifest(images)
    if store.COMPACTION in manifest:
        raise DatasetError(f"{images!r} is compacted already: compact the dataset that it was made from")
    return manifest | ({"config": redacted(manifest["config"])} if "config" in manifest else {})


def _check_complete(images: str, progress: store.Progress, num_shards: int, *, allow_incomplete: bool) -> None:
    done = f"it holds {len(progress.parts)} of {num_shards} shards"
    if not progress.parts:
        raise DatasetError(f"synthetic dataset {images!r} has no parts yet")
    if not progress.complete and not allow_incomplete:
        raise DatasetError(
            f"synthetic dataset {images!r} is incomplete: {done}; run its synthesis again, or set allow_incomplete to "
            "take what there is"
        )


def _check_parts(images: str, digest: str, progress: store.Progress, index: pa.Table) -> None:
    """Refuse parts that the index cannot describe: they are damaged, or not as a synthesis writes them.

    Raises:
        DatasetError: a part is of that kind.
    """
    unknown = parts_without_row(index, progress.parts)
    damaged = damaged_parts(images, digest, unknown)
    for shard_id in unknown:
        uri = part_uri(images, shard_id, digest)
        reason = damaged.get(shard_id, f"{uri!r} is not one row group of images, as a part is")
        raise DatasetError(f"shard {shard_id} has a damaged part, delete it and run the synthesis again: {reason}")
