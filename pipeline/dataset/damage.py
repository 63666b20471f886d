"""Find parts of a dataset that are damaged: to be deleted, and made again."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline import storage
from pipeline.dataset.footers import read_footer
from pipeline.dataset.part_files import DATA, PartFile, holds_parts, list_part_files
from pipeline.errors import DamagedError


def damaged_parts(output: str, digest: str, shard_ids: Sequence[int]) -> dict[int, str]:
    """Return shard id → reason for damaged parts: truncated ones, and ones that belong to another dataset or shard.

    Args:
        output: folder of the dataset.
        digest: digest of the dataset.
        shard_ids: ids of the shards whose parts are checked, where there are any.

    Raises:
        DatasetError: a part cannot be read, and may be whole.
    """
    if not shard_ids:
        return {}
    wanted = set(shard_ids)
    files = [file for file in list_part_files(output, digest) if not wanted.isdisjoint(file.shard_ids)]
    with ThreadPoolExecutor(storage.READ_THREADS) as threads:
        reasons = list(threads.map(lambda file: _damage(output, digest, file), files))
    return {
        shard_id: reason
        for file, reason in zip(files, reasons, strict=True)
        for shard_id in file.shard_ids
        if reason is not None and shard_id in wanted
    }


def _damage(output: str, digest: str, file: PartFile) -> str | None:
    """Say what is wrong with a file of parts; None if nothing is.

    Raises:
        DatasetError: the file cannot be read, and may be whole.
    """
    uri = storage.join(output, DATA, file.name)
    try:
        footer, _ = storage.with_retries(lambda: read_footer(uri))
    except DamagedError as error:
        return str(error)
    if holds_parts(footer.metadata, footer.num_row_groups, file.shard_ids, digest):
        return None
    return f"{uri!r} is not a part of this dataset: its metadata names another shard or none"
