"""List the files under `data/`; the name of each says which shards it holds.

- `part-NNNNN-<digest8>.parquet`: the part of shard NNNNN, as a synthesis writes it.
- `part-NNNNN-MMMMM-<digest8>.parquet`: the parts of the shards NNNNN to MMMMM, one row group each, as
  `pipeline.compaction` merges them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline import storage
from pipeline.documents import parse_json
from pipeline.errors import DatasetError

# Folder of the parts, in which nothing else lies.
DATA = "data"
_PART = re.compile(r"part-(\d{5,12})(?:-(\d{5,12}))?-([0-9a-f]{8})\.parquet")
# Key of a merged file's metadata: a JSON list of what the metadata of each part said of that part alone.
_MERGED = b"parts"
# Smallest number of bytes with which Parquet describes a row group with the columns of a part.
_LEAST_BYTES = 100


@dataclass(frozen=True)
class PartFile:
    """A file under `data/`.

    Attributes:
        name: name of the file.
        shard_ids: ids of the shards whose parts the file holds; if there are several, each part is a row group.
        size: size of the file in bytes.
    """

    name: str
    shard_ids: range
    size: int


def part_name(shard_id: int, digest: str) -> str:
    """Return the file name of a shard's part; `digest` is the config's."""
    return f"part-{shard_id:05d}-{digest[:8]}.parquet"


def merged_name(shard_ids: range, digest: str) -> str:
    """Return the name of the file that holds the parts of some shards, one or more."""
    if len(shard_ids) == 1:
        return part_name(shard_ids[0], digest)
    return f"part-{shard_ids[0]:05d}-{shard_ids[-1]:05d}-{digest[:8]}.parquet"


def parse_part_name(name: str) -> tuple[range, str] | None:
    """Return shards and first 8 digits of the digest from a file's name; None for any other name."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return None if match[2] and last <= first else (range(first, last + 1), match[3])


def part_uri(output: str, shard_id: int, digest: str) -> str:
    """Return where a synthesis puts the part of a shard."""
    return storage.join(output, DATA, part_name(shard_id, digest))


def list_part_files(output: str, digest: str) -> list[PartFile]:
    """Return the files that hold the parts of a dataset, in the order of the shards.

    Raises:
        DatasetError: files lie under `data/` that hold no parts of this dataset, or parts that another file holds too.
    """
    data = storage.join(output, DATA)
    files = sorted((_part_file(data, *entry, digest) for entry in storage.list_sizes(data).items()), key=_order)
    for before, file in pairwise(files):
        shard_id = file.shard_ids[0]
        if shard_id <= before.shard_ids[-1]:
            raise DatasetError(f"{data!r} holds shard {shard_id} twice: delete {before.name!r} or {file.name!r}")
    return files


def _order(file: PartFile) -> tuple[int, int]:
    return file.shard_ids[0], len(file.shard_ids)


def _part_file(data: str, name: str, size: int, digest: str) -> PartFile:
    parsed = parse_part_name(name)
    if parsed is None:
        raise DatasetError(f"{data!r} holds a file that is not a part: {name!r}")
    shard_ids, start = parsed
    if start != digest[:8]:
        raise DatasetError(f"{data!r} holds a part of another config: {name!r}")
    # A stranger's name could state more shards than memory has room for.
    if len(shard_ids) > 1 and len(shard_ids) * _LEAST_BYTES > size:
        raise DatasetError(f"{data!r} holds {name!r}, which states {len(shard_ids)} parts in {size} bytes")
    return PartFile(name, shard_ids, size)


def merged_metadata(facts: Mapping[int, Mapping[str, str]]) -> dict[bytes, bytes]:
    """Return the metadata of a merged file: the facts that concern each of its parts alone.

    Args:
        facts: shard id → what the part's own metadata said of that part alone, such as how its micro-batches were
            split.
    """
    return {_MERGED: json.dumps([{"shard_id": shard_id, **own} for shard_id, own in facts.items()]).encode()}


def holds_parts(metadata: Mapping[bytes, bytes] | None, num_row_groups: int, shard_ids: range, digest: str) -> bool:
    """Return whether a file's footer matches its name: the digest and the shards that it should hold.

    Args:
        metadata: metadata of the file; None if it has none.
        num_row_groups: number of the file's row groups.
        shard_ids: ids of the shards that the file should hold.
        digest: digest of the dataset.
    """
    facts = metadata or {}
    if facts.get(b"digest") != digest.encode():
        return False
    if len(shard_ids) == 1:
        return facts.get(b"shard_id") == str(shard_ids[0]).encode()
    return num_row_groups == len(shard_ids) and _merged_shards(facts) == list(shard_ids)


def _merged_shards(metadata: Mapping[bytes, bytes]) -> list[Any]:
    """Return the shards of a merged file according to its metadata; empty if it is no merged file."""
    try:
        return [part["shard_id"] for part in parse_json(metadata.get(_MERGED, b"[]"))]
    except (KeyError, TypeError, ValueError):
        return []
