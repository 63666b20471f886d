"""Calibrate on Ray Train workers, and merge their ranges."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import Tensor

from pipeline import storage
from pipeline.cluster import own_errors
from pipeline.config import from_dict, to_dict
from pipeline.dataset.collection import ImageCollection
from pipeline.errors import CheckpointError, IncompleteError
from pipeline.models import LoadedModel, load_model
from pipeline.progress import Count, progress
from pipeline.quantization.batches import Window, gather_batches, share_windows
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.plan import CalibrationPlan
from pipeline.quantization.ranges import Ranges, reduce_ranges
from pipeline.quantization.reading import iterate_inputs, whole_image
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


def calibrate_ranges(plan: CalibrationPlan, *, fixed_size: bool = False) -> Calibration:
    """Read every planned image once, on `num_workers` workers, and merge what they saw.

    Each batch is planned from the dataset alone and read whole by one worker, so that the ranges are the same, bit for
    bit, for any number of workers. A worker reads its own images in its process, and holds a window of them at a time,
    decoded, with the rows that are read together from a file.

    Args:
        plan: what to calibrate on what.
        fixed_size: no node can join the cluster any more.

    Raises:
        ConfigError: a fixed cluster is too small.
        PipelineError: an image cannot be read, or the workers were lost too often.
    """
    config = plan.config
    workers = None
    if config.num_workers:
        # Before the first image is read: a cluster may be too small.
        workers = worker_configs(config.num_workers, config.cpus_per_worker, config.device, fixed_size=fixed_size)
    with own_errors(), progress("calibrate", plan.num_images, on_workers=workers is not None) as count:
        observed = _calibrate_here(plan, count) if workers is None else _calibrate_on_workers(plan, count, *workers)
    calibration = Calibration(**observed, samples=_samples(plan))
    _check_complete(calibration, plan.windows)
    return calibration


def _samples(plan: CalibrationPlan) -> Tensor:
    """Read a few of the images, float32 [B, C, H, W]."""
    rows = [row for window in plan.windows for row in window.rows][:_NUM_SAMPLES]
    samples = _read(_Share(plan.images.select(rows), _batches(plan.windows)), plan.loaded)
    return torch.from_numpy(np.stack([row["pixels"] for row in islice(samples, len(rows))]))


@dataclass(frozen=True)
class _Share:
    """What one worker reads.

    Attributes:
        images: with the units that hold its rows.
        batches: image ids that are read together.
    """

    images: ImageCollection
    batches: list[list[str]]


def _share(plan: CalibrationPlan, windows: Sequence[Window]) -> _Share:
    return _Share(plan.images.select([row for window in windows for row in window.rows]), _batches(windows))


def _read(share: _Share, loaded: LoadedModel) -> Iterator[dict[str, Any]]:
    return iterate_inputs(share.images, loaded, {image_id for batch in share.batches for image_id in batch})


def _observe(
    config: CalibrationConfig, loaded: LoadedModel, observer: RangeObserver, share: _Share, count: Count
) -> list[str]:
    dense = whole_image(loaded) if config.mode == "dense" else None
    return observer.observe(gather_batches(_read(share, loaded), share.batches, dense_patches=dense), count)


def _calibrate_here(plan: CalibrationPlan, count: Count) -> dict[str, Any]:
    config, loaded = plan.config, plan.loaded
    threads = torch.get_num_threads()
    torch.set_num_threads(config.cpus_per_worker)
    try:
        observer = RangeObserver(loaded.model, config.placement)
        image_ids = _observe(config, loaded, observer, _share(plan, plan.windows), count)
    finally:
        torch.set_num_threads(threads)
    return {"ranges": observer.ranges(), "image_ids": [image_ids]}


def _calibrate_on_workers(
    plan: CalibrationPlan, count: Count, scaling: ScalingConfig, torch_config: TorchConfig
) -> dict[str, Any]:
    config = plan.config
    folder = storage.join(config.output, TRAIN_FOLDER)
    trainer = TorchTrainer(
        _observe_share,
        train_loop_config={
            "config": to_dict(dataclasses.replace(config, teacher=config.teacher.located())),
            "shares": [_share(plan, windows) for windows in share_windows(plan.windows, config.num_workers)],
            "weights": plan.loaded.digest,
            "count": count,
        },
        torch_config=torch_config,
        scaling_config=scaling,
        run_config=run_config(
            folder,
            f"calibrate-{plan.digest[:8]}",
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


def _observe_share(settings: dict[str, Any]) -> dict[str, Any]:
    """Read a worker's share, and merge with the others: ranges and image ids of a `Calibration`."""
    config = from_dict(CalibrationConfig, settings["config"])
    torch.set_num_threads(config.cpus_per_worker)
    loaded = load_model(config.teacher)
    if loaded.digest != settings["weights"]:
        raise CheckpointError(f"the weights of {config.teacher.name!r} are not the same on every machine")
    device = get_device()
    share: _Share = settings["shares"][ray.train.get_context().get_world_rank()]
    observer = RangeObserver(loaded.model.to(device), config.placement)
    image_ids = _observe(config, loaded, observer, share, settings["count"])
    everyone: list[Any] = [None] * ray.train.get_context().get_world_size()
    dist.all_gather_object(everyone, image_ids)
    return {"ranges": reduce_ranges(observer.ranges(), device), "image_ids": everyone}


def _batches(windows: Sequence[Window]) -> list[list[str]]:
    return [batch for window in windows for batch in window.batches]


def _check_complete(calibration: Calibration, windows: Sequence[Window]) -> None:
    read = sorted(image_id for part in calibration.image_ids for image_id in part)
    planned = sorted(image_id for batch in _batches(windows) for image_id in batch)
    if read != planned:
        raise IncompleteError(f"{len(read)} images were read, {len(planned)} were planned")
