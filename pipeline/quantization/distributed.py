"""Calibrate on Ray Train workers, and merge their ranges."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, get_device
from torch import Tensor, nn

from pipeline.cluster import own_errors
from pipeline.dataset.collection import ImageCollection
from pipeline.errors import IncompleteError
from pipeline.models import LoadedModel
from pipeline.out_of_memory import naming_batch_size
from pipeline.quantization.batches import CalibrationBatch, Window, gather_batches, share_windows
from pipeline.quantization.channels import ChannelObserver, ChannelRanges, merge_channels
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.moments import MomentObserver, Moments
from pipeline.quantization.observe import GraphReader, RangeObserver
from pipeline.quantization.observers import Observer, extremes, make_observer, merge_observers, ranges_for
from pipeline.quantization.plan import CalibrationPlan
from pipeline.quantization.ranges import Ranges, check_observed_ranges
from pipeline.quantization.reading import iterate_inputs, whole_image
from pipeline.quantization.transforms import equalized, smoothed
from pipeline.workers import load_again, pick_device, threads, with_absolute_paths
from pipeline.workers.progress import Count, progress
from pipeline.workers.training import run_workers, worker_configs


@dataclass(frozen=True)
class Calibration:
    """Result of the passes over the images.

    Attributes:
        observers: observer of each point, over all images.
        channels: ranges of the model's channels before it was smoothed; None if it was not.
        moments: sums over what the layers read, by point; None if neither weights nor biases are refined.
        image_ids: ids of the images that each worker read.
        samples: the planned samples, on which artifacts are compared: float32 [B, C, H, W], normalized.
    """

    observers: dict[str, Observer]
    image_ids: list[list[str]]
    samples: Tensor
    channels: ChannelRanges | None = None
    moments: dict[str, Moments] | None = None

    @property
    def ranges(self) -> Ranges:
        """Smallest and largest value seen at each point, even if the range to quantize is narrower."""
        return extremes(self.observers)

    def ranges_for(self, activation_bits: int) -> Ranges:
        """Return the range at each point that is represented in so many bits."""
        return ranges_for(self.observers, activation_bits)

    @property
    def num_images(self) -> int:
        """Number of images read by all workers together."""
        return sum(map(len, self.image_ids))


def calibrate_ranges(plan: CalibrationPlan) -> Calibration:
    """Read every planned image, on `workers.size` workers, and merge what they saw.

    One pass over the images observes the ranges. If the model is smoothed, a pass before it observes the range of each
    channel; if weights or biases are refined, a pass after it adds up what the layers read.

    Each batch is planned from the dataset alone and read whole by one worker, so that the ranges are the same, bit for
    bit, for any number of workers. A worker reads its own images in its process, and holds a window of them at a time,
    decoded, with the rows that are read together from a file.

    Args:
        plan: plan of the calibration.

    Raises:
        ConfigError: the cluster is too small and no node can join it, or this process has no GPU and one is demanded.
        OtherModelError: a worker loaded other weights than are planned with.
        PipelineError: an image cannot be read, or the workers were lost too often.
    """
    workers, resources, device = plan.config.workers, None, torch.device("cpu")
    # Raises before the first image is read if the cluster is too small, or a GPU is missing.
    if workers.size:
        resources = worker_configs(workers)
    else:
        device = pick_device(workers.device, "workers.device")
    to_read = plan.num_images * plan.config.num_passes
    with own_errors(), progress("calibrate", to_read, on_workers=resources is not None) as count:
        if resources is None:
            observed = _calibrate_here(plan, count, device)
        else:
            observed = _calibrate_on_workers(plan, count, resources)
    calibration = Calibration(**observed, samples=read_window(plan, plan.samples))
    _check_complete(calibration, plan.windows)
    return calibration


def read_window(plan: CalibrationPlan, window: Window) -> Tensor:
    """Read the images of a window in this process, float32 [B, C, H, W], normalized, in the dataset's order.

    Raises:
        DatasetError: a file cannot be read, or an image cannot be decoded.
    """
    rows = _read(_share(plan.images, [window]), plan.loaded)
    return torch.from_numpy(np.stack([row["pixels"] for row in rows]))


def read_batches(plan: CalibrationPlan, window: Window) -> list[CalibrationBatch]:
    """Read the images of a window in this process, at the patches that are calibrated on.

    Raises:
        DatasetError: a file cannot be read, or an image cannot be decoded or is missing.
    """
    return list(_gather_batches(plan.config, plan.loaded, _share(plan.images, [window])))


@dataclass(frozen=True)
class _Share:
    """Images that one worker reads.

    Attributes:
        images: the images, with the units that hold the worker's rows, and perhaps other rows between them.
        batches: ids of the images that are read together.
    """

    images: ImageCollection
    batches: list[list[str]]


def _share(images: ImageCollection, windows: Sequence[Window]) -> _Share:
    return _Share(images.select([row for window in windows for row in window.rows]), _batches(windows))


def _read(share: _Share, loaded: LoadedModel, *, reads_kept: bool = False) -> Iterator[dict[str, Any]]:
    wanted = {image_id for batch in share.batches for image_id in batch}
    return iterate_inputs(share.images, loaded, wanted, reads_kept=reads_kept)


def _range_observer(config: CalibrationConfig, model: nn.Module) -> RangeObserver:
    return RangeObserver(model, config.placement, partial(make_observer, config.observer, config.percentile))


@dataclass(frozen=True)
class _Workers:
    """Operations by which the workers of a calibration combine what each of them saw.

    Attributes:
        gather: function that returns what every worker passes to it, in the order of their ranks.
        add: function that returns the sum of the int64 tensors that the workers pass to it, all of the same shape.
    """

    gather: Callable[[Any], list[Any]]
    add: Callable[[Tensor], Tensor]


_ALONE = _Workers(gather=lambda own: [own], add=lambda own: own)


def _observe_all(
    config: CalibrationConfig, loaded: LoadedModel, share: _Share, count: Count, workers: _Workers
) -> dict[str, Any]:
    """Observe a worker's share in all passes; return the parts of a `Calibration`, merged over all workers.

    Args:
        loaded: the model, on the device to calibrate on.
    """
    model, channels, moments = equalized(config, loaded.model), None, None
    if config.smoothing != "none":
        first = ChannelObserver(model, config.placement)
        _observe(config, loaded, first, share, count)
        channels = merge_channels(workers.gather(first.ranges()))
        model = smoothed(config, model, first.readers, channels)
    observer = _range_observer(config, model)
    image_ids = _observe(config, loaded, observer, share, count)
    observers = merge_observers(workers.gather(observer.observers))
    if config.refines:
        last = _moment_observer(config, model, observers)
        _observe(config, loaded, last, share, count)
        moments = last.moments(workers.add)
    return {
        "observers": observers,
        "image_ids": workers.gather(image_ids),
        "channels": channels,
        "moments": moments,
    }


def _moment_observer(config: CalibrationConfig, model: nn.Module, observers: dict[str, Observer]) -> MomentObserver:
    seen = extremes(observers)
    check_observed_ranges(seen)
    ranges = {bits: ranges_for(observers, bits) for bits in config.activation_bits}
    return MomentObserver(model, config.placement, seen, ranges, products=config.rounding == "gptq")


def _observe(
    config: CalibrationConfig, loaded: LoadedModel, observer: GraphReader, share: _Share, count: Count
) -> list[str]:
    with naming_batch_size("batch_size", config.batch_size):
        return observer.observe(_gather_batches(config, loaded, share), count)


def _gather_batches(config: CalibrationConfig, loaded: LoadedModel, share: _Share) -> Iterator[CalibrationBatch]:
    dense = whole_image(loaded) if config.mode == "dense" else None
    return gather_batches(_read(share, loaded, reads_kept=dense is None), share.batches, dense_patches=dense)


def _calibrate_here(plan: CalibrationPlan, count: Count, device: torch.device) -> dict[str, Any]:
    config, loaded = plan.config, plan.loaded
    if device.type != "cpu":
        # The plan's own stays on the CPU, where artifacts are made.
        loaded = replace(loaded, model=copy.deepcopy(loaded.model).to(device))
    with threads(config.workers.cpus_per_worker):
        return _observe_all(config, loaded, _share(plan.images, plan.windows), count, _ALONE)


@dataclass(frozen=True)
class _Task:
    """Work that every worker is sent, and divides among as many workers as there are when it starts.

    Attributes:
        config: settings with absolute local paths.
        teacher_digest: SHA-256 of the teacher's weights as the driver loaded them.
        images: all images, whose rows the windows number.
        windows: windows of all workers.
        count: function that is called with the number of images that were just read.
    """

    config: CalibrationConfig
    teacher_digest: str
    images: ImageCollection
    windows: list[Window]
    count: Count


def _calibrate_on_workers(
    plan: CalibrationPlan, count: Count, resources: tuple[ScalingConfig, TorchConfig]
) -> dict[str, Any]:
    config = plan.config
    task = _Task(with_absolute_paths(config), plan.loaded.digest, plan.images, plan.windows, count)
    name = f"calibrate-{plan.digest[:8]}"
    return run_workers(partial(_observe_share, task), config.workers, resources, output=config.output, name=name)


def _observe_share(task: _Task) -> dict[str, Any] | None:
    """Read a worker's share; rank 0 merges all and returns the parts of a `Calibration`."""
    config, context = task.config, ray.train.get_context()
    rank = context.get_world_rank()
    share = _share(task.images, share_windows(task.windows, context.get_world_size())[rank])
    with threads(config.workers.cpus_per_worker):
        loaded = load_again(config.teacher, task.teacher_digest)
        loaded.model.to(get_device())
        seen = _observe_all(config, loaded, share, task.count, _Workers(_gather, _add))
    return None if rank else seen


def _gather(own: Any) -> list[Any]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def _add(own: Tensor) -> Tensor:
    dist.all_reduce(own)
    return own


def _batches(windows: Sequence[Window]) -> list[list[str]]:
    return [batch for window in windows for batch in window.batches]


def _check_complete(calibration: Calibration, windows: Sequence[Window]) -> None:
    read = sorted(image_id for part in calibration.image_ids for image_id in part)
    planned = sorted(image_id for batch in _batches(windows) for image_id in batch)
    if read != planned:
        raise IncompleteError(f"{len(read)} images were read, {len(planned)} were planned")
