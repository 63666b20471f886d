"""Write shards: part files and failure records, each with the outcome that the driver gets."""

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import storage
from pipeline.credentials import without_credentials
from pipeline.dataset import schema, store
from pipeline.dataset.index import read_part_facts, summary_of
from pipeline.errors import DatasetError, NonFiniteError, as_line
from pipeline.synthesis.actor import InvertedShard, Inverter
from pipeline.synthesis.checkpoints import Checkpoints
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.devices import is_node_leaving
from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.snapshots import WATCHED_SHARD, write_snapshots
from pipeline.workers import check_same_digest, device_name


@dataclass(frozen=True)
class UnwrittenShard:
    """A shard that is inverted and not yet written.

    Attributes:
        shard_id, labels: number of the shard, and class of each of its images.
        shard: images of the shard.
        seconds: seconds that the inversion took.
        resumed: line about the checkpoint that the shard was resumed from; empty if it was not.
    """

    shard_id: int
    labels: Sequence[int]
    shard: InvertedShard
    seconds: float
    resumed: str = ""


class PartWriter(Inverter):
    """Turns rows of `plan_shards` into part files, and yields the outcome of each shard as soon as it is done.

    Args:
        config: settings of the dataset.
        digest: the driver's digest of the config; if this actor's differs, it sees another teacher.
        schema_version: version of the dataset's schema, from its manifest.

    Raises:
        OtherModelError: this actor sees another teacher.
    """

    def __init__(self, config: SynthesisConfig, digest: str, schema_version: int = schema.SCHEMA_VERSION) -> None:
        super().__init__(config)
        self.schema_version = schema_version
        # The digest of a dataset covers more of a teacher than its weights.
        check_same_digest(f"teacher {config.teacher.name!r}", self.digest, digest)
        self.worker = worker_name()
        if config.checkpoint_minutes is not None:
            every_s = 60 * config.checkpoint_minutes
            self.checkpoints = Checkpoints(config.output, self.digest, every_s, is_node_leaving)

    def write_shard(self, shard_id: int, labels: Sequence[int], image_ids: Sequence[str]) -> Outcome:
        """Invert a shard and write its part, or its failure record."""
        made = self.make(shard_id, labels, image_ids)
        return self.store(made) if isinstance(made, UnwrittenShard) else made

    def make(self, shard_id: int, labels: Sequence[int], image_ids: Sequence[str]) -> UnwrittenShard | Outcome:
        """Invert a shard and return it for `store`, or its outcome if another run made it or it failed.

        A failure is recorded.
        """
        if self._is_done(shard_id):
            return self._by_another(shard_id, labels)
        started = time.monotonic()
        # Passed only if it is set: functions that replace `invert_shard` in fault drills may not take it.
        watched = {"watched": self.config.snapshots} if shard_id == WATCHED_SHARD and self.config.snapshots else {}
        try:
            shard = self.invert_shard(shard_id, labels, image_ids, **watched)
        # A DatasetError here means that storage did not give out the shard's checkpoint.
        except (NonFiniteError, DatasetError, OSError, torch.OutOfMemoryError) as error:
            return self._failed(shard_id, labels, error)
        # Seconds of earlier attempts count too, as far as a checkpoint kept their work.
        resumed, before = ("", 0.0) if self.checkpoints is None else self.checkpoints.before(shard_id)
        return UnwrittenShard(shard_id, labels, shard, before + time.monotonic() - started, resumed)

    def store(self, made: UnwrittenShard) -> Outcome:
        """Encode the images of a shard and write its part, or a failure record. Uses no GPU."""
        shard_id, labels, shard = made.shard_id, made.labels, made.shard
        started = time.monotonic()
        try:
            written = self._write(shard_id, shard)
            fault = None if shard.snapshots is None else write_snapshots(self.config.output, shard.snapshots)
        except OSError as error:
            return self._failed(shard_id, labels, error)
        return Outcome(
            shard_id,
            self.worker,
            notes=[*([] if fault is None else [fault]), *self._end_checkpoints(shard_id)],
            resumed=made.resumed,
            num_images=len(labels),
            **written,
            **summary_of(shard.table),
            seconds=made.seconds,
            store_s=time.monotonic() - started,
            num_steps=shard.num_steps,
            compile_s=shard.compile_s,
            peak_bytes=shard.peak_bytes,
            device=device_name(self.device),
        )

    def read_back(self, shard_id: int) -> Outcome:
        """Return the outcome of a part that this run made, read from the part itself: the first one may be lost.

        Raises:
            DatasetError: the part cannot be read.
        """
        facts = read_part_facts(self.config.output, self.digest, shard_id)
        num_images = facts.pop("num_rows")
        return Outcome(worker=self.worker, num_images=num_images, **facts)

    def _write(self, shard_id: int, shard: InvertedShard) -> dict[str, int]:
        """Write a part; return its size, and that of its row group before compression, both in bytes."""
        facts = {"digest": self.digest, "shard_id": str(shard_id), "schema_version": str(self.schema_version)}
        if shard.halvings:
            # Recorded because other micro-batches may round differently: (step, images at once from then on).
            facts["halvings"] = json.dumps(shard.halvings)
        if self.config.inversion.adaptive_end is not None:
            facts["num_steps"] = json.dumps(shard.num_steps)
        part = schema.part_schema(self.class_names, shard_id, metadata=facts, version=self.schema_version)
        content = schema.to_parquet(shard.table.replace_schema_metadata(part.metadata))
        storage.with_retries(lambda: store.write_part(self.config.output, shard_id, self.digest, content))
        row_group = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(0)
        return {"bytes": len(content), "row_group_bytes": row_group.total_byte_size}

    def _end_checkpoints(self, shard_id: int) -> list[str]:
        """Delete the checkpoint of a shard that no longer needs one; return notes for the driver."""
        return [] if self.checkpoints is None else self.checkpoints.end(shard_id)

    def _is_done(self, shard_id: int) -> bool:
        """Return whether another run has written the part; False if storage keeps failing to say so."""
        try:
            return storage.with_retries(lambda: store.part_exists(self.config.output, shard_id, self.digest))
        except DatasetError:
            return False

    def _by_another(self, shard_id: int, labels: Sequence[int]) -> Outcome:
        """Return the outcome of a shard that another run with the same settings has made in the meantime."""
        return Outcome(shard_id, self.worker, by_another=True, num_images=len(labels))

    def _failed(self, shard_id: int, labels: Sequence[int], error: Exception) -> Outcome:
        if self._is_done(shard_id):
            return self._by_another(shard_id, labels)
        reason = record_failure(self.config.output, shard_id, labels, self.worker, type(error).__name__, str(error))
        storage_failed = isinstance(error, OSError | DatasetError)
        # A shard that failed because of storage keeps its checkpoint, to go on from there. One that failed by itself
        # must begin anew.
        notes = [] if storage_failed else self._end_checkpoints(shard_id)
        return Outcome(
            shard_id,
            self.worker,
            error=type(error).__name__,
            reason=reason,
            num_images=len(labels),
            storage_failed=storage_failed,
            notes=notes,
        )


def worker_name() -> str:
    """Return a name for this process, by which a GPU that keeps failing can be found."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{socket.gethostname()} pid {os.getpid()}{f' gpu {gpus}' if gpus else ''}"


def record_failure(output: str, shard_id: int, labels: Sequence[int], worker: str, error: str, reason: str) -> str:
    """Write a shard's failure record.

    Returns:
        The reason in one line; it also says if the record could not be written.
    """
    reason = without_credentials(as_line(reason))
    record = {
        "error": error,
        "reason": reason,
        "labels": sorted(set(labels)),
        "worker": worker,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        storage.with_retries(lambda: store.write_failure(output, shard_id, record))
    except OSError as second:
        # The driver still gets the row, and reports the failure.
        return f"{reason}; and this could not be recorded: {second}"
    return reason
