"""Stand-ins for what a worker does. By themselves, so that workers need not import torch."""

import os
import signal
from dataclasses import replace
from pathlib import Path

from pipeline.compaction.merging import MergedFile, Merger


def die_once(merger: Merger, shard_ids: range) -> MergedFile:
    """Die at the first attempt at the second file."""
    mark = Path(f"{merger.output}.died")
    if shard_ids[0] == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return merger.merge(shard_ids)


def run_out_of_disk(merger: Merger, shard_ids: range) -> MergedFile:
    """Fail at the last file."""
    if shard_ids[0] == 6:
        raise OSError(28, "No space left on device")
    return merger.merge(shard_ids)


def write_elsewhere(merger: Merger, shard_ids: range) -> MergedFile:
    """Write to a disk of one's own, under the same name."""
    return replace(merger, output=f"{merger.output}-of-another-machine").merge(shard_ids)
