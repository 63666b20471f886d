"""Calibration on Ray: every image to one worker, nothing dropped; what the workers saw, merged."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import torch
import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import Tensor

from pipeline import storage
from pipeline.cluster import own_errors
from pipeline.config import from_dict, to_dict
from pipeline.errors import CheckpointError, IncompleteError
from pipeline.models import LoadedModel, load_model
from pipeline.models.image_reader import num_patches
from pipeline.quantization.batches import Window, gather_batches, plan_windows, share_windows
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.ranges import Ranges, reduce_ranges
from pipeline.quantization.sampling import lowest_ranked
from pipeline.training import fit, run_config, worker_configs

# Under the output, while the workers run.
TRAIN_FOLDER = "train"
# To compare artifacts on: each adds as many logits as there are classes.
_NUM_SAMPLES = 32


@dataclass(frozen=True)
class Calibration:
    """What one pass over the images gave.

    Attributes:
        ranges: over all images.
        image_ids: those that each worker read.
        samples: a few of the images, float32 [B, C, H, W], normalized.
    """

    ranges: Ranges
    image_ids: list[list[str]]
    samples: Tensor

    @property
    def num_images(self) -> int:
        """Images read, over all workers."""
        return sum(map(len, self.image_ids))


def calibrate_ranges(
    config: CalibrationConfig, images: ray.data.Dataset, loaded: LoadedModel, digest: str, *, fixed: bool = False
) -> Calibration:
    """Read every image once, on `config.num_workers` workers, and merge what they saw.

    Each batch is planned from the dataset alone and read whole by one worker, so that the ranges are the same, bit for
    bit, for any number of workers.

    Args:
        config: how.
        images: rows as `pipeline.inputs.read_inputs` gives them.
        loaded: the model; workers load it anew from `config.teacher`.
        digest: names the Ray Train run.
        fixed: no node can join the cluster any more.

    Raises:
        ConfigError: a fixed cluster is too small.
        PipelineError: an image cannot be read, or the workers were lost too often.
    """
    workers = None
    if config.num_workers:
        # Before the first image is read: a cluster may be too small.
        workers = worker_configs(config.num_workers, config.cpus_per_worker, config.device, fixed=fixed)
    with own_errors():
        images = _in_memory(config, images)
        rows = _index(images, _dense_patches(config, loaded))
        windows = plan_windows(rows, config.batch_size, config.max_images, config.seed)
        if workers is not None:
            observed = _calibrate_on_workers(config, images, loaded, windows, digest, *workers)
        else:
            observed = _calibrate_here(config, images, loaded, windows)
        samples = np.stack([np.asarray(row["pixels"], np.float32) for row in images.take(_NUM_SAMPLES)])
    calibration = Calibration(**observed, samples=torch.from_numpy(samples))
    _check_complete(calibration, windows)
    return calibration


def _in_memory(config: CalibrationConfig, images: ray.data.Dataset) -> ray.data.Dataset:
    """The images in a fixed order, once decoded; of more than are wanted, few more than those."""
    images = images.select_columns(["pixels", "keep_indices", "image_id"])
    if config.max_images is not None:
        draw = partial(lowest_ranked, count=config.max_images, seed=config.seed)
        images = images.map_batches(draw, batch_format="pyarrow", batch_size=None)
    images.context.execution_options.preserve_order = True
    return images.materialize()


def _dense_patches(config: CalibrationConfig, loaded: LoadedModel) -> int | None:
    # A model without patches counts as one.
    return num_patches(loaded) or 1 if config.mode == "dense" else None


def _index(images: ray.data.Dataset, dense_patches: int | None) -> list[tuple[str, int]]:
    """Id and number of patches to read of each row, in order."""
    index = images.select_columns(["keep_indices", "image_id"])
    index.context.execution_options.preserve_order = True
    return [(str(row["image_id"]), dense_patches or len(row["keep_indices"])) for row in index.iter_rows()]


def _calibrate_here(
    config: CalibrationConfig, images: ray.data.Dataset, loaded: LoadedModel, windows: Sequence[Window]
) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.cpus_per_worker)
    try:
        observer = RangeObserver(loaded.model, config.placement)
        dense = _dense_patches(config, loaded)
        image_ids = observer.observe(gather_batches(images.iter_rows(), _batches(windows), dense_patches=dense))
    finally:
        torch.set_num_threads(threads)
    return {"ranges": observer.ranges(), "image_ids": [image_ids]}


def _calibrate_on_workers(
    config: CalibrationConfig,
    images: ray.data.Dataset,
    loaded: LoadedModel,
    windows: Sequence[Window],
    digest: str,
    scaling: ScalingConfig,
    torch_config: TorchConfig,
) -> dict[str, Any]:
    shares = share_windows(windows, config.num_workers)
    # A worker without windows has an empty part, which ends where the one before it ends.
    cuts = list(accumulate((share[-1].stop if share else 0 for share in shares[:-1]), max))
    parts = images.split_at_indices(cuts) if cuts else [images]
    folder = storage.join(config.output, TRAIN_FOLDER)
    trainer = TorchTrainer(
        _observe_part,
        train_loop_config={
            "config": to_dict(dataclasses.replace(config, teacher=config.teacher.located())),
            "batches": [_batches(share) for share in shares],
            "weights": loaded.digest,
        },
        torch_config=torch_config,
        datasets={_part_name(rank): part for rank, part in enumerate(parts)},
        # Parts are cut at the windows above: Ray's own split would drop a remainder, or cut through a batch.
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        scaling_config=scaling,
        run_config=run_config(
            folder,
            f"calibrate-{digest[:8]}",
            max_failures=config.max_failures,
            start_timeout_s=config.start_timeout_s,
        ),
    )
    # A run holds nothing to go on from: one that was cut off starts anew, for it is one pass over few images.
    storage.remove_folder(folder)
    try:
        return fit(trainer)
    finally:
        storage.remove_folder(folder)


def _observe_part(settings: dict[str, Any]) -> dict[str, Any]:
    """What a worker does: read its part, merge with the others. Returns ranges and image ids of a `Calibration`."""
    config = from_dict(CalibrationConfig, settings["config"])
    torch.set_num_threads(config.cpus_per_worker)
    loaded = load_model(config.teacher)
    if loaded.digest != settings["weights"]:
        raise CheckpointError(f"the weights of {config.teacher.name!r} are not the same on every machine")
    device = get_device()
    rank = ray.train.get_context().get_world_rank()
    observer = RangeObserver(loaded.model.to(device), config.placement)
    part: Any = ray.train.get_dataset_shard(_part_name(rank))
    batches, dense = settings["batches"][rank], _dense_patches(config, loaded)
    image_ids = observer.observe(gather_batches(part.iter_rows(), batches, dense_patches=dense))
    everyone: list[Any] = [None] * ray.train.get_context().get_world_size()
    dist.all_gather_object(everyone, image_ids)
    return {"ranges": reduce_ranges(observer.ranges(), device), "image_ids": everyone}


def _part_name(rank: int) -> str:
    return f"part-{rank}"


def _batches(windows: Sequence[Window]) -> list[list[str]]:
    return [batch for window in windows for batch in window.batches]


def _check_complete(calibration: Calibration, windows: Sequence[Window]) -> None:
    read = sorted(image_id for part in calibration.image_ids for image_id in part)
    planned = sorted(image_id for batch in _batches(windows) for image_id in batch)
    if read != planned:
        raise IncompleteError(f"{len(read)} images were read, {len(planned)} were planned")
