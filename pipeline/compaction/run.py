"""Run a compaction: check, merge on the cluster what is missing, and write what describes the dataset."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipeline import storage
from pipeline.cluster import check_cluster, connect, own_errors
from pipeline.compaction.config import CompactionConfig
from pipeline.compaction.merging import MergedFile, Merger
from pipeline.compaction.plan import CompactionPlan, plan_compaction
from pipeline.dataset import store
from pipeline.dataset.card import CARD
from pipeline.dataset.index import load_index, valid_rows, write_index
from pipeline.dataset.listing import counted
from pipeline.dataset.own_card import card_of_merged, write_card
from pipeline.dataset.part_files import PartFile, list_part_files
from pipeline.errors import DatasetError, IncompleteError
from pipeline.log import logger
from pipeline.outputs import hold
from pipeline.outputs.names import SHEET, SNAPSHOTS
from pipeline.outputs.owners import NOT_SHARED
from pipeline.report.writing import PAGE

# Number of files that wait for a worker at once: enough for an autoscaler to see how much work there is.
_MOST_WAITING = 1000
# Number of further attempts at a file whose worker was lost. Where storage fails, the worker itself tries again.
_RETRIES = 3
_INTERVAL_S = 5.0
# Files beside the dataset that people look at.
_PICTURES = (SHEET, SNAPSHOTS, PAGE)


def compact(config: CompactionConfig) -> dict[str, Any]:
    """Write the compacted dataset, or what is missing of it.

    Progress goes to standard error. The same parts give the same bytes, whoever merges them and however often the run
    was killed. If another run with the same settings is at work, this one waits for it.

    Returns:
        A summary as plain data.

    Raises:
        ConfigError, DatasetError: see `plan_compaction`; or a part is damaged, or the output cannot be written.
        IncompleteError: storage kept failing, a disk is full, or workers kept dying. What is written stays.
    """
    started = time.monotonic()
    check_cluster()
    plan = plan_compaction(config)
    output = plan.merger.output
    with hold(output, "compact", plan.manifest):
        known = _known_files(plan)
        with storage.writing_to(output):
            store.clear_temporaries(output)
        merged = [] if known else _merge_all(plan)
        if merged:
            with storage.writing_to(output):
                _describe(plan, merged)
        return _summary(plan, sum(file.made for file in merged), time.monotonic() - started)


def files_left(config: CompactionConfig) -> str:
    """Say how much of a compacted dataset is done when its run was stopped, and how to continue.

    Raises:
        DatasetError: the output cannot be read.
    """
    manifest = store.read_manifest(config.output) if storage.exists(store.manifest_uri(config.output)) else {}
    if store.COMPACTION not in manifest:
        return "nothing was made, run it again"
    return f"{_counted(config.output, manifest)}, run it again for the rest"


def _counted(output: str, manifest: dict[str, Any]) -> str:
    done = len(list_part_files(output, manifest["digest"]))
    return f"{done} of {manifest[store.COMPACTION]['num_files']} files are written"


def _known_files(plan: CompactionPlan) -> bool:
    """Return whether a run before this one wrote every file, and the index of them."""
    output, digest = plan.merger.output, plan.merger.digest
    parts = store.list_parts(output, digest)
    return parts.keys() == plan.progress.parts.keys() and len(valid_rows(load_index(output, digest), parts)) == len(
        parts
    )


def _merge_all(plan: CompactionPlan) -> list[MergedFile]:
    """Merge what is not merged yet; return what each file holds, in order.

    Raises:
        DatasetError: a part is missing or damaged.
        IncompleteError: storage kept failing, or workers kept dying.
    """
    logger.info(f"plan: {_describe_plan(plan)}")
    merged: list[MergedFile] = []
    last_line = time.monotonic()
    try:
        with own_errors():
            connect()
            for file in _merge_on_cluster(plan.merger, plan.files):
                merged.append(file)
                if time.monotonic() - last_line > _INTERVAL_S or len(merged) == len(plan.files):
                    logger.info(f"compact: {len(merged)} of {len(plan.files)} files")
                    last_line = time.monotonic()
    except IncompleteError as error:
        done = _counted(plan.merger.output, plan.manifest)
        raise IncompleteError(f"{done}, run it again for the rest: {error}") from error
    return sorted(merged, key=lambda file: file.shard_ids[0])


def _describe_plan(plan: CompactionPlan) -> str:
    megabytes = sum(plan.progress.parts.values()) / 10**6
    size = f"{megabytes:.1f}" if megabytes >= 1 else f"{megabytes:.1g}"
    without = f"; shards without a part: {plan.num_missing}" if plan.num_missing else ""
    return f"{counted(plan.progress.parts, 'part')}, {size} MB in all, into {counted(plan.files, 'file')}{without}"


def _merge_on_cluster(merger: Merger, files: list[range]) -> Iterator[MergedFile]:
    """Merge each file in a task of its own, and yield what it holds as soon as it is done."""
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": _RETRIES}
    merge: Any = ray.remote(**options)(_merge)
    shared = ray.put(merger)
    ahead = iter(files)
    waiting: list[ray.ObjectRef] = []
    try:
        while True:
            waiting += [merge.remote(shared, shard_ids) for shard_ids in islice(ahead, _MOST_WAITING - len(waiting))]
            if not waiting:
                return
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    finally:
        for task in waiting:
            ray.cancel(task)


def _merge(merger: Merger, shard_ids: range) -> MergedFile:
    return merger.merge(shard_ids)


def _describe(plan: CompactionPlan, merged: list[MergedFile]) -> None:
    """Write what goes with the files: failure records, what people look at, and last the index."""
    images, output = plan.merger.images, plan.merger.output
    for shard_id, record in plan.progress.failed.items():
        store.write_failure(output, shard_id, record)
    for name in _PICTURES:
        if storage.exists(storage.join(images, name)):
            storage.write_bytes(storage.join(output, name), storage.read_bytes(storage.join(images, name)))
    _write_card(plan)
    files = list_part_files(output, plan.merger.digest)
    _check_there(plan, files)
    write_index(output, plan.merger.digest, _index(plan.index, files, merged))
    store.clear_temporaries(output)


def _check_there(plan: CompactionPlan, files: list[PartFile]) -> None:
    """Check that this machine sees what the workers wrote.

    Raises:
        DatasetError: a file is missing here.
    """
    there = {file.shard_ids for file in files}
    for shard_ids in plan.files:
        if shard_ids not in there:
            raise DatasetError(f"{plan.merger.uri(shard_ids)!r} was written, and it is not there: {NOT_SHARED}")


def _write_card(plan: CompactionPlan) -> None:
    """Write the dataset's card, which its owner may have edited, with the number of files that there are now."""
    uris = [storage.join(folder, CARD) for folder in (plan.merger.images, plan.merger.output)]
    if not storage.exists(uris[0]):
        write_card(plan.merger.output, plan.manifest)
        return
    card = storage.read_bytes(uris[0]).decode(errors="surrogateescape")
    card = card_of_merged(card, plan.manifest["num_shards"], len(plan.files))
    storage.write_bytes(uris[1], card.encode(errors="surrogateescape"))


def _index(index: pa.Table, files: list[PartFile], merged: list[MergedFile]) -> pa.Table:
    """Return the index of a dataset with the sizes of the merged files; all else of a part stays as it was."""
    sizes = np.repeat([file.size for file in files], [len(file.shard_ids) for file in files])
    columns = {
        "num_rows": [rows for file in merged for rows in file.num_rows],
        "bytes": sizes,
        "row_group_bytes": [size for file in merged for size in file.row_group_bytes],
    }
    index = index.sort_by("shard_id")
    for name, values in columns.items():
        field = index.schema.field(name)
        index = index.set_column(index.schema.get_field_index(name), field, pa.array(values, field.type))
    return index


def _summary(plan: CompactionPlan, num_made: int, seconds: float) -> dict[str, Any]:
    output, digest = plan.merger.output, plan.merger.digest
    files = list_part_files(output, digest)
    return {
        "complete": [file.shard_ids for file in files] == plan.files,
        "output": output,
        "digest": digest,
        "num_parts": len(plan.progress.parts),
        "num_missing": plan.num_missing,
        "num_files": len(files),
        "num_files_made": num_made,
        "num_images": int(np.sum(plan.index["num_rows"].to_numpy())),
        "bytes": sum(file.size for file in files),
        "seconds": round(seconds, 2),
    }
