"""What an actor does: load the teacher once, then invert shard after shard."""

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.dataset import schema, store
from pipeline.errors import ConfigError, ModelError, NonFiniteError
from pipeline.inversion import Disagreement, FeaturePrior, Harvest, InversionResult, invert, make_teacher, score
from pipeline.synthesis.identity import config_digest, image_seed
from pipeline.synthesis.networks import load_networks
from pipeline.synthesis.shards import SynthesisConfig

# Before each further attempt to write a part, seconds: object stores throttle, networks blink.
RETRY_DELAYS_S = (0.5, 2.0, 8.0)

# What the driver hears of a shard: an empty error where it is done.
OUTCOME = pa.schema(
    {
        "shard_id": pa.int64(),
        "error": pa.string(),
        "reason": pa.string(),
        "unwritten": pa.bool_(),
        "worker": pa.string(),
        "num_images": pa.int64(),
        "class_loss": pa.float64(),
        "teacher_confidence": pa.float64(),
        "num_steps": pa.list_(pa.int64()),
        "compile_s": pa.float64(),
        "peak_bytes": pa.int64(),
    }
)


def pick_device(wanted: str) -> torch.device:
    """The device of this process: its GPU where it has one and is to use it.

    An actor pinned to a logical GPU on a machine without hardware computes on the CPU.

    Raises:
        ConfigError: a GPU is demanded and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("pool.device is 'cuda', and this actor sees no CUDA device")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def make_deterministic(device: torch.device, *, strict: bool) -> None:
    """Let the same shard give the same bytes on a GPU, run after run.

    Args:
        device: of this process.
        strict: refuse operations that have no deterministic kernel, instead of warning.
    """
    if device.type != "cuda":
        return
    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@dataclass(frozen=True)
class Shard:
    """A shard's images as made.

    Attributes:
        table: the contract's columns.
        micro_batch: images in one forward, where memory ran out for more; else None.
        num_steps: taken by each start, in order; fewer than the others' where it ended early.
        compile_s: seconds in which graphs were compiled.
        peak_bytes: of the GPU's memory, by this actor so far; 0 on a CPU.
    """

    table: pa.Table
    micro_batch: int | None
    num_steps: list[int]
    compile_s: float
    peak_bytes: int


class Inverter:
    """Rows of `plan_shards` → rows of the dataset contract; a class for Ray Data's `map_batches`.

    `ray.data.from_items(plan_shards(config)).map_batches(Inverter, fn_constructor_args=(config,), batch_size=1,
    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8), num_gpus=1)`. Rows may be of your own making: an image
    depends on `shard_id`, its entry of `image_ids`, its label and the config; with scope `published` on the shard's
    other images as well. With `rebirth` v, v rows that follow each other come of one start, and share a label.

    Args:
        config: of the dataset; the actor loads the teacher itself.

    Raises:
        ModelError, CheckpointError, ConfigError: the teacher cannot be loaded, or not with this config.
    """

    def __init__(self, config: SynthesisConfig) -> None:
        self.config = config
        torch.set_num_threads(config.pool.cpus_per_actor)
        self.device = pick_device(config.pool.device)
        # A CNN of the feature prior may pool in ways that have no deterministic backward.
        make_deterministic(self.device, strict=config.feature_model is None)
        networks = load_networks(config)
        loaded, feature_model = networks.teacher, networks.feature_model
        self.digest = config_digest(config, networks)
        self.class_names = loaded.class_names
        self.teacher = make_teacher(
            loaded.model, config.inversion, image_size=loaded.input_size[1:], mean=loaded.mean, std=loaded.std
        ).to(self.device)
        self.feature_prior = None
        if feature_model is not None:
            published = config.inversion.scope == "published"
            self.feature_prior = FeaturePrior(feature_model.model.to(self.device), batch_statistics=published)
        self.disagreement = None
        student = networks.student_reader()
        if student is not None:
            self.disagreement = Disagreement(student.to(self.device), reads_kept=student.vit is not None)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        """A table a shard.

        Raises:
            NonFiniteError: a loss or the pixels of a shard became NaN or infinite; it names the shard.
        """
        for shard_id, labels, image_ids in shard_rows(batch):
            yield self.invert_shard(shard_id, labels, image_ids).table

    def invert_shard(self, shard_id: int, labels: Sequence[int], image_ids: Sequence[str]) -> Shard:
        """Invert one shard, and score its images as they will be stored.

        Raises:
            NonFiniteError: see `__call__`.
            ConfigError: rows that are to come of one start have different labels.
        """
        starts = self._starts(shard_id, labels)
        result = self._invert(shard_id, starts, image_ids[:: self.config.inversion.images_per_run])
        made = [self._finish(harvest, starts, result.micro_batch) for harvest in result.harvests]
        # The images of a start follow each other.
        columns = {
            name: [row for rows in zip(*(m[name] for m in made), strict=True) for row in rows] for name in made[0]
        }
        columns |= {
            "image": schema.image_column(columns["image"], image_ids),
            "label": list(labels),
            "image_id": list(image_ids),
            "shard_id": [shard_id] * len(labels),
        }
        asked = min(self.config.inversion.micro_batch or len(starts), len(starts))
        arrow_schema = schema.arrow_schema(self.class_names)
        return Shard(
            table=pa.table({name: columns[name] for name in arrow_schema.names}, schema=arrow_schema),
            micro_batch=result.micro_batch if result.micro_batch < asked else None,
            num_steps=result.num_steps.tolist(),
            compile_s=result.compile_s,
            peak_bytes=torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0,
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

    def _invert(self, shard_id: int, targets: Tensor, image_ids: Sequence[str]) -> InversionResult:
        seeds = [image_seed(self.digest, shard_id, image_id) for image_id in image_ids]
        try:
            return invert(
                self.teacher,
                targets,
                self.config.inversion,
                seeds=seeds,
                feature_prior=self.feature_prior,
                disagreement=self.disagreement,
            )
        except NonFiniteError as error:
            raise NonFiniteError(error.step, error.term, shard_id) from error

    def _finish(self, harvest: Harvest, targets: Tensor, micro_batch: int) -> dict[str, list[Any]]:
        """Columns of images as they are stored, scored as many at a time as the inversion could hold."""
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


def shard_rows(batch: Mapping[str, Any]) -> Iterator[tuple[int, list[int], list[str]]]:
    """Shard id, labels and image ids of each row of a batch, as Ray Data hands it over."""
    for shard_id, labels, image_ids in zip(batch["shard_id"], batch["labels"], batch["image_ids"], strict=True):
        yield int(shard_id), [int(label) for label in labels], [str(image_id) for image_id in image_ids]


class PartWriter(Inverter):
    """Rows of `plan_shards` → part files; what comes back is a small row a shard, told as soon as it is done.

    Args:
        config: of the dataset.
        digest: as the driver found it; another one here means that this actor sees another teacher.

    Raises:
        ModelError: it does.
    """

    def __init__(self, config: SynthesisConfig, digest: str) -> None:
        super().__init__(config)
        if self.digest != digest:
            raise ModelError(
                f"teacher {config.teacher.name!r} differs between the driver (config digest {digest[:8]}) and an actor "
                f"({self.digest[:8]}): was it changed meanwhile?"
            )
        # Who did it: a GPU that fails again and again has a name.
        self.worker = f"{socket.gethostname()} pid {os.getpid()} gpu {os.environ.get('CUDA_VISIBLE_DEVICES') or '-'}"

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        for shard_id, labels, image_ids in shard_rows(batch):
            yield pa.Table.from_pylist([self._write_shard(shard_id, labels, image_ids)], schema=OUTCOME)

    def _write_shard(self, shard_id: int, labels: Sequence[int], image_ids: Sequence[str]) -> dict[str, Any]:
        try:
            shard = self.invert_shard(shard_id, labels, image_ids)
            self._write(shard_id, shard)
        except (NonFiniteError, OSError, torch.OutOfMemoryError) as error:
            return self._failed(shard_id, labels, error)
        return {
            "shard_id": shard_id,
            "error": "",
            "reason": "",
            "unwritten": False,
            "worker": self.worker,
            "num_images": len(labels),
            "class_loss": _mean(shard.table["class_loss"]),
            "teacher_confidence": _mean(shard.table["teacher_confidence"]),
            "num_steps": shard.num_steps,
            "compile_s": shard.compile_s,
            "peak_bytes": shard.peak_bytes,
        }

    def _write(self, shard_id: int, shard: Shard) -> None:
        facts = {"digest": self.digest, "shard_id": str(shard_id), "schema_version": str(schema.SCHEMA_VERSION)}
        if shard.micro_batch is not None:
            facts["micro_batch"] = str(shard.micro_batch)
        if self.config.inversion.adaptive_end is not None:
            facts["num_steps"] = json.dumps(shard.num_steps)
        table = shard.table.replace_schema_metadata(schema.arrow_schema(self.class_names, metadata=facts).metadata)
        content = schema.to_parquet(table)
        with_retries(lambda: store.write_part(self.config.output, shard_id, self.digest, content))

    def _failed(self, shard_id: int, labels: Sequence[int], error: Exception) -> dict[str, Any]:
        reason = " ".join(str(error).split())
        record = {
            "error": type(error).__name__,
            "reason": reason,
            "labels": sorted(set(labels)),
            "worker": self.worker,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            with_retries(lambda: store.write_failure(self.config.output, shard_id, record))
        except OSError as second:
            # The driver still gets the row, and tells.
            reason = f"{reason}; and this could not be recorded: {second}"
        return {
            "shard_id": shard_id,
            "error": type(error).__name__,
            "reason": reason,
            "unwritten": isinstance(error, OSError),
            "worker": self.worker,
            "num_images": 0,
            "class_loss": math.nan,
            "teacher_confidence": math.nan,
            "num_steps": [],
            "compile_s": 0.0,
            "peak_bytes": 0,
        }


def _mean(column: pa.ChunkedArray) -> float:
    return float(np.mean(column.to_numpy()))


def with_retries(write: Any) -> None:
    """Write, and try again a few times what may be a passing trouble.

    Raises:
        OSError: it kept failing.
    """
    for delay_s in RETRY_DELAYS_S:
        try:
            return write()
        except OSError:
            time.sleep(delay_s)
    return write()
