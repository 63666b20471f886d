"""The actor: load the teacher once, then invert shards."""

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.dataset import schema
from pipeline.errors import ConfigError, NonFiniteError
from pipeline.inversion import (
    Harvest,
    Inversion,
    InversionResult,
    frozen_copy,
    score,
)
from pipeline.out_of_memory import as_out_of_memory
from pipeline.synthesis.checkpoints import Checkpoints
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.identity import config_digest, image_seed
from pipeline.synthesis.networks import load_networks
from pipeline.synthesis.rows import RowReader
from pipeline.synthesis.snapshots import Snapshots
from pipeline.workers import pick_device

# GPU memory that a process takes for its CUDA context, before it allocates anything; rounded up.
_CONTEXT_BYTES = 2**30


def make_deterministic(device: torch.device, *, strict: bool) -> None:
    """Let the same shard give the same bytes on a GPU, run after run.

    Args:
        device: device that this process computes on.
        strict: whether to refuse operations that have no deterministic kernel, instead of warning of them.
    """
    if device.type != "cuda":
        return
    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def memory_share(total: int, actors: int) -> int:
    """Return the bytes of a GPU that an actor may allocate: all, or an equal share less the memory of its context."""
    return total if actors == 1 else total // actors - _CONTEXT_BYTES


def limit_memory(device: torch.device, actors: int) -> None:
    """Limit this process to its share of a GPU's memory; when that is full, it splits its batches.

    Otherwise the batches of a shard, which decide how its pixels are rounded, would depend on the GPU's other actors.

    Args:
        device: device that this process computes on.
        actors: number of actors that share the device.

    Raises:
        ConfigError: the share is smaller than what a process takes of the memory in any case.
    """
    if device.type != "cuda" or actors == 1:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    share = memory_share(total, actors)
    if share <= 0:
        raise ConfigError(
            f"pool.gpus_per_actor puts {actors} actors on a GPU of {total / 2**30:.3g} GiB, of which each needs "
            f"{_CONTEXT_BYTES / 2**30:g} GiB for its context: give a larger share"
        )
    torch.cuda.set_per_process_memory_fraction(share / total, device)


@dataclass(frozen=True)
class InvertedShard:
    """The images of one shard after inversion, before they are encoded.

    Attributes:
        shard_id: number of the shard.
        class_names: names of the teacher's classes.
        columns: values of the dataset contract's columns, one per image; `image` is uint8 [H, W, C], not encoded yet.
        snapshots: how the first images formed, as plain data; None if nobody asked for it.
        halvings: one entry for each time that memory ran out: (step, images in one forward pass from then on).
        num_steps: number of steps that each start took, in order; fewer where an image ended early.
        compile_s: seconds spent compiling graphs.
        peak_bytes: on a GPU, the most memory that was allocated while the shard was inverted; on a CPU, the most memory
            that the process has held so far.
    """

    shard_id: int
    class_names: list[str]
    columns: dict[str, list[Any]]
    snapshots: dict[str, Any] | None
    halvings: list[tuple[int, int]]
    num_steps: list[int]
    compile_s: float
    peak_bytes: int

    @cached_property
    def table(self) -> pa.Table:
        """Rows of the dataset contract. They are made only when asked for, because encoding images needs no GPU."""
        images = schema.image_column(self.columns["image"], self.columns["image_id"])
        arrow_schema = schema.part_schema(self.class_names, self.shard_id)
        columns = {**self.columns, "image": images}
        return pa.table({name: columns[name] for name in arrow_schema.names}, schema=arrow_schema)


class Inverter:
    """Rows of shards → rows of the dataset contract; a class for Ray Data's `map_batches`.

    `pipeline.synthesis.build_inverter(config)` gives `map_batches` its arguments, checks that no id comes twice, and
    gives each further column one type. A bare `map_batches(Inverter)` cannot: an actor sees only the batches that it
    gets, and of numpy and pandas batches each has types of its own (take `batch_format="pyarrow"`).

    Rows are those of `plan_shards`, or of your own making, as numpy, pandas or pyarrow batches of any size:

    - `shard_id`: a whole number, another for each row.
    - `labels`: a list with the class of each image.
    - `image_ids`: as many names, all different.
    - further columns are passed on to the images: a list with an entry for each image goes entry by entry, and any
      other value is repeated. A column must not hold lists in some rows and other values in others.

    Anything like a list will do for one: a tuple, a range, an array of numpy or Arrow, a tensor, a pandas Series.

    An image depends on `shard_id`, its entry of `image_ids`, its label and the config; with scope `published` on the
    shard's other images as well. With `rebirth` v, v images that follow each other come of one start and share a label.

    Args:
        config: settings of the dataset, from which the actor loads the teacher itself. Local paths in it must be
            absolute, as `located` makes them, because an actor has a working folder of its own.

    Raises:
        ModelError, CheckpointError, ConfigError: the teacher cannot be loaded, or not with this config.
    """

    # None if no checkpoints are written: the shards belong to no dataset, or `checkpoint_minutes` is null.
    checkpoints: Checkpoints | None = None

    def __init__(self, config: SynthesisConfig) -> None:
        self.config = config
        # This holds for the thread that makes this object, which must also be the one that inverts.
        torch.set_num_threads(config.pool.cpus_per_actor)
        self.device = pick_device(config.pool.device, "pool.device")
        limit_memory(self.device, config.pool.actors_per_gpu)
        # A CNN may pool in ways that have no deterministic backward.
        any_network = config.feature_model is not None or config.student is not None or config.inversion.mask_only
        make_deterministic(self.device, strict=not any_network)
        networks = load_networks(config)
        self.digest = config_digest(config, networks)
        self.class_names = networks.teacher.class_names
        self._rows = RowReader(len(self.class_names), again=True)
        self.teacher = networks.make_teacher(config.inversion).to(self.device)
        self.ready_teacher = frozen_copy(self.teacher, config.inversion.dtype, compiled=config.inversion.compile)
        self.terms = networks.make_terms(config.inversion, self.device)

    def __call__(self, batch: Any) -> Iterator[pa.Table]:
        """Yield one table for each shard.

        Raises:
            DatasetError: a row is not as the class describes it; the message names shard and value.
            NonFiniteError: a loss or the pixels of a shard became NaN or infinite; it names the shard.
        """
        for row in self._rows.read(batch):
            table = self.invert_shard(row.shard_id, row.labels, row.image_ids).table
            for name, column in row.further.items():
                table = table.append_column(name, column)
            yield table

    @as_out_of_memory()
    def invert_shard(
        self, shard_id: int, labels: Sequence[int], image_ids: Sequence[str], *, watched: int = 0
    ) -> InvertedShard:
        """Invert one shard, and score its images as they will be stored.

        Args:
            shard_id: number of the shard, from which the seeds are derived, together with the image ids.
            labels: class of each image.
            image_ids: name of each image.
            watched: number of images of which snapshots are taken; it changes nothing else.

        Raises:
            NonFiniteError: see `__call__`.
            torch.OutOfMemoryError: not even one image fits into memory in a step, or the batch does not between two.
            ConfigError: rows that are to come of one start have different labels.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        starts = self._starts(shard_id, labels)
        snapshots = Snapshots(watched) if watched else None
        result = self._invert(shard_id, starts, image_ids[:: self.config.inversion.images_per_run], snapshots)
        made = [self._finish(harvest, starts, result.micro_batch) for harvest in result.harvests]
        # The images of a start follow each other.
        columns = {
            name: [row for rows in zip(*(m[name] for m in made), strict=True) for row in rows] for name in made[0]
        }
        columns |= {
            "label": list(labels),
            "image_id": list(image_ids),
            "shard_id": [shard_id] * len(labels),
        }
        return InvertedShard(
            shard_id=shard_id,
            class_names=self.class_names,
            columns=columns,
            snapshots=None if snapshots is None else snapshots.document(starts.tolist(), result),
            halvings=result.halvings,
            num_steps=result.num_steps.tolist(),
            compile_s=result.compile_s,
            peak_bytes=_peak_bytes(self.device),
        )

    def _starts(self, shard_id: int, labels: Sequence[int]) -> Tensor:
        """The class of each start, int64; with Patch Rebirth several rows come of one."""
        rows = torch.tensor(labels, device=self.device)
        per_run = self.config.inversion.images_per_run
        if len(rows) % per_run or bool((rows.view(-1, per_run) != rows[::per_run, None]).any()):
            raise ConfigError(
                f"shard {shard_id}: rebirth {per_run} needs as many rows of one label in turn, not {labels}"
            )
        return rows[::per_run]

    def _invert(
        self, shard_id: int, targets: Tensor, image_ids: Sequence[str], snapshots: Snapshots | None
    ) -> InversionResult:
        seeds = [image_seed(self.digest, shard_id, image_id) for image_id in image_ids]
        run = Inversion(self.ready_teacher, targets, self.config.inversion, seeds=seeds, terms=self.terms)
        step = run.step
        if self.checkpoints is not None:
            step = self.checkpoints.follow(run, shard_id, seeds, snapshots)
        try:
            if snapshots is not None:
                return snapshots.run(run, step)
            while not run.finished:
                step()
            return run.result()
        except NonFiniteError as error:
            raise NonFiniteError(error.step, error.term, shard_id) from error

    def _finish(self, harvest: Harvest, targets: Tensor, micro_batch: int) -> dict[str, list[Any]]:
        """Return the columns of images as stored; they are scored in batches that the inversion could hold."""
        pixels = self.teacher.to_uint8(self.teacher.fill_stopped(harvest.images, harvest.keep_indices))
        pieces = zip(*(rows.split(micro_batch) for rows in (pixels, harvest.keep_indices, targets)), strict=True)
        parts = [score(self.teacher, *piece) for piece in pieces]
        loss, confidence, prediction = (torch.cat(columns).tolist() for columns in zip(*parts, strict=True))
        return {
            "image": list(pixels.cpu().numpy()),
            "keep_indices": harvest.keep_indices.tolist(),
            "class_loss": loss,
            "teacher_confidence": confidence,
            "teacher_prediction": prediction,
        }


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
