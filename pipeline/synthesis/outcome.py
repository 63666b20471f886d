"""The result of one turn of a worker, with or without a shard, as sent to the driver. Imports no torch."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Outcome:
    """The result of a shard: made, failed or handed back; by default nothing was made, without an error.

    Ray Data carries it from the worker to the driver as a row of a table, see `to_table` and `from_table`.

    Attributes:
        shard_id: number of the shard; None if there is none, because the worker could not load the teacher, or nobody
            is left who works in the pass.
        worker: name of the worker's process.
        error: type of the error that the shard failed with; empty if it did not fail.
        reason: message of that error, on one line.
        storage_failed: whether storage is to blame: the part could not be written, or the checkpoint not read.
        by_another: whether another run with the same settings made the shard in the meantime.
        handed_back: whether nothing ended: the shard goes back to the queue because this worker's device failed, or the
            worker could not load the teacher.
        over: whether the pass is over for this worker.
        notes: lines about what went wrong.
        resumed: line about the checkpoint that the shard was resumed from; empty if it was not.
        num_images: number of images in the shard.
        labels: classes of the part's images, sorted.
        bytes: size of the part file, in bytes.
        row_group_bytes: size of the part's row group before compression, in bytes.
        seconds: seconds that the inversion took; 0 if that is not known.
        store_s: seconds that encoding and writing took.
        class_loss, teacher_confidence: means over the images of the shard.
        num_steps: number of steps that each start took.
        compile_s: seconds spent compiling graphs.
        peak_bytes: largest memory of the process, as in `InvertedShard`.
        device: model of the GPU, or `cpu`; None if that is not known.
        attempts: number of attempts at the shard so far, including this one. `GuardedWriter` fills in this and the next
            two.
        node: node that the worker runs on.
        gpu: GPU of that node that the worker computes on.
    """

    shard_id: int | None
    worker: str
    _: KW_ONLY
    error: str = ""
    reason: str = ""
    storage_failed: bool = False
    by_another: bool = False
    handed_back: bool = False
    over: bool = False
    notes: list[str] = field(default_factory=list)
    resumed: str = ""
    num_images: int = 0
    labels: list[int] = field(default_factory=list)
    bytes: int = 0
    row_group_bytes: int = 0
    seconds: float = 0.0
    store_s: float = 0.0
    class_loss: float = math.nan
    teacher_confidence: float = math.nan
    num_steps: list[int] = field(default_factory=list)
    compile_s: float = 0.0
    peak_bytes: int = 0
    device: str | None = None
    attempts: int | None = None
    node: str | None = None
    gpu: str | None = None

    @property
    def is_made(self) -> bool:
        """Whether this run made the shard and wrote it."""
        return not self.error and not self.by_another

    def as_row(self) -> dict[str, Any]:
        """Return the values by the names of the fields."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}


_ARROW_TYPES = {
    int: pa.int64(),
    int | None: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
    str | None: pa.string(),
    list[int]: pa.list_(pa.int64()),
    list[str]: pa.list_(pa.string()),
}
_SCHEMA = pa.schema({each.name: _ARROW_TYPES[each.type] for each in dataclasses.fields(Outcome)})


def to_table(outcomes: Iterable[Outcome]) -> pa.Table:
    """Return a table with a row for each outcome."""
    return pa.Table.from_pylist([outcome.as_row() for outcome in outcomes], schema=_SCHEMA)


def from_table(table: pa.Table) -> list[Outcome]:
    """Return the outcomes that `to_table` made a table of."""
    return [Outcome(**row) for row in table.to_pylist()]
