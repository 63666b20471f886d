"""List unfinished shards as JSON, in lines that stay short even if most of a large dataset is missing."""

from collections.abc import Iterable, Sequence
from typing import Any

# Largest number of entries in a list. Failed shards beyond it have their reasons in the records under `failed/`.
MOST_LISTED = 1000
# Smallest number of neighbors that become a range. Fewer are listed one by one.
_SHORTEST_RANGE = 3


def list_undone(**lists: Sequence[Any]) -> dict[str, Any]:
    """Return each list, cut to its first 1,000 entries, and before it, as `num_NAME`, the number of all its shards.

    Args:
        lists: name of a list → its shards: ids, of which neighbors are put together (see `id_ranges`), or records.
    """
    listed: dict[str, Any] = {}
    for name, shards in lists.items():
        entries = id_ranges(shards) if all(isinstance(shard, int) for shard in shards) else shards
        listed |= {f"num_{name}": len(shards), name: list(entries[:MOST_LISTED])}
    return listed


def id_ranges(ids: Iterable[int]) -> list[int | str]:
    """Return rising ids, where three or more neighbors become a text such as `0-9`, as in the setting `classes`."""
    runs: list[list[int]] = []
    for each in ids:
        if runs and each == runs[-1][1] + 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    entries: list[int | str] = []
    for first, last in runs:
        entries += range(first, last + 1) if last - first + 1 < _SHORTEST_RANGE else [f"{first}-{last}"]
    return entries
