"""Quantization-aware distillation: train each quantized model to answer as the float teacher does."""

import copy
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, cycle, islice
from statistics import fmean

import ray
import torch
from ray.train.torch import get_device
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pipeline.cluster import connect, own_errors
from pipeline.dataset.collection import ImageCollection
from pipeline.distillation.answers import Answers, as_reader
from pipeline.distillation.images import DistillationBatch, image_bytes, read_into_memory
from pipeline.distillation.losses import soft_label_loss
from pipeline.distillation.opening import as_views, open_images
from pipeline.distillation.order import Share, even_sizes
from pipeline.distillation.schedule import lr_factor
from pipeline.errors import ConfigError, NonFiniteError, one_line
from pipeline.log import logger
from pipeline.models import LoadedModel
from pipeline.progress import Count, progress
from pipeline.quantization.channels import ChannelRanges
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.graphs import export_images
from pipeline.quantization.learned import LearnedGraph
from pipeline.quantization.plan import CalibrationPlan
from pipeline.quantization.qat_config import QatConfig
from pipeline.quantization.reading import whole_image
from pipeline.quantization.transforms import model_to_quantize
from pipeline.quantization.variants import Values, Variant
from pipeline.training import run_workers, worker_configs
from pipeline.vit.families import refusal
from pipeline.workers import load_again, pick_device, threads, with_absolute_paths


@dataclass(frozen=True)
class Trained:
    """A trained variant.

    Attributes:
        values: what it is quantized with.
        losses: of each step, in nats.
    """

    values: Values
    losses: list[float]

    @property
    def first_loss(self) -> float:
        """Mean over the first tenth of the steps."""
        return fmean(self.losses[: self._tenth])

    @property
    def last_loss(self) -> float:
        """Mean over the last tenth of the steps."""
        return fmean(self.losses[-self._tenth :])

    @property
    def _tenth(self) -> int:
        return -(-len(self.losses) // 10)


@dataclass(frozen=True)
class _Task:
    """Work for the process that trains.

    Attributes:
        config: with absolute local paths.
        teacher_digest: of the weights, as the driver loaded them.
        channels: by which the model is smoothed, where it is.
        images: to train on: decoded, in Ray's object store, or where they are.
        work: each variant and what its training starts from, in Ray's object store.
        count: what to call with the number of images that were just read.
    """

    config: CalibrationConfig
    teacher_digest: str
    channels: ChannelRanges | None
    images: ImageCollection | list[ray.ObjectRef]
    work: list[ray.ObjectRef]
    count: Count


def check_training(plan: CalibrationPlan) -> None:
    """Check that the training can run on the cluster that was joined, before the calibration that it follows.

    Raises:
        ConfigError: this process has no GPU and one is demanded; or the worker would hold every core, and wait for ever
            for the tasks that read its images.
    """
    config = plan.config
    if config.qat is not None and not config.workers.size:
        pick_device(config.workers.device, "workers.device")
    cores, held = ray.cluster_resources().get("CPU", 0.0), config.workers.cpus_per_worker
    # With fewer cores than that, nodes are yet to come.
    if config.qat is not None and config.workers.size and not _fits(plan) and held <= cores < held + 1:
        raise ConfigError(
            f"qat: the worker would hold {held} of {cores:g} CPUs and leave none to read images: raise qat.cache_gb so "
            "that the images fit in memory, or lower workers.cpus_per_worker"
        )


def _fits(plan: CalibrationPlan) -> bool:
    """Whether all images are kept in memory, decoded."""
    assert plan.config.qat is not None
    return image_bytes(plan.images, plan.loaded, with_tokens=False) <= plan.config.qat.cache_gb * 2**30


def train_variants(
    plan: CalibrationPlan,
    channels: ChannelRanges | None,
    work: Sequence[tuple[Variant, Values]],
    *,
    fixed_size: bool,
) -> dict[str, Trained]:
    """Train variants one after another, and return each by its label.

    Args:
        plan: of the calibration; its config has settings of the training.
        channels: of the model before it was smoothed, where it was.
        work: variants, each with what calibration found.
        fixed_size: no node can join the cluster any more.

    Raises:
        NonFiniteError: a loss became NaN or infinite.
        ConfigError: a step does not fit into the memory of the GPU.
        PipelineError: an image cannot be read, or the worker was lost too often.
    """
    config, qat = plan.config, plan.config.qat
    assert qat is not None
    total = len(work) * sum(islice(cycle(even_sizes(plan.images.num_rows, qat.batch_size)), qat.steps))
    with own_errors(), progress("qat", total, on_workers=config.workers.size > 0) as done:
        images = [ray.put(read_into_memory(plan.images, plan.loaded, labels=False))] if _fits(plan) else plan.images
        own = with_absolute_paths(config), plan.loaded.digest, channels
        task = _Task(*own, images, [ray.put(list(work))], done)
        trained = _train_on_one(task, plan.digest, fixed_size=fixed_size) if config.workers.size else _train_here(task)
    for label, found in trained.items():
        logger.info(f"qat {label}: loss {found.first_loss:.4g} at first, {found.last_loss:.4g} at the end")
    return trained


def _train_on_one(task: _Task, digest: str, *, fixed_size: bool) -> dict[str, Trained]:
    # More would add up gradients in another order: the artifacts would depend on their number.
    workers = replace(task.config.workers, size=1, min_size=None)
    resources = worker_configs(workers, fixed_size=fixed_size)
    output, name = task.config.output, f"qat-{digest[:8]}"
    return run_workers(partial(_train_on_worker, task), workers, resources, output=output, name=name)


def _train_on_worker(task: _Task) -> dict[str, Trained]:
    connect()
    return _train_all(task, get_device())


def _train_here(task: _Task) -> dict[str, Trained]:
    return _train_all(task, pick_device(task.config.workers.device, "workers.device"))


def _train_all(task: _Task, device: torch.device) -> dict[str, Trained]:
    config, qat = task.config, task.config.qat
    assert qat is not None
    with threads(config.workers.cpus_per_worker):
        loaded = load_again(config.teacher, task.teacher_digest)
        program = export_images(loaded.model, config.placement)
        model = model_to_quantize(config, loaded.model, task.channels, program)
        # Answers fill the slot of the model that they read; smoothing may have left the same one.
        model = copy.deepcopy(model).to(device)
        answers = Answers(as_reader(loaded.model).to(device), with_tokens=False, dtype=torch.float32)
        found = {}
        for variant, values in ray.get(task.work[0]):
            with closing(_batches(task, loaded, device)) as batches:
                found[variant.label] = _train_one(model, answers, variant, values, batches, task, device)
    return found


def _train_one(
    model: nn.Module,
    answers: Answers,
    variant: Variant,
    values: Values,
    batches: Iterator[DistillationBatch],
    task: _Task,
    device: torch.device,
) -> Trained:
    """Train a variant; nothing of it stays on the device.

    Raises:
        ConfigError: a step does not fit into the memory of the GPU; it would not on another try.
    """
    config, qat = task.config, task.config.qat
    assert qat is not None
    try:
        graph = LearnedGraph(model, config.placement, variant, values).to(device)
        return train_graph(graph, answers, batches, qat, task.count, variant.label)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"qat.batch_size is {qat.batch_size}, and training {variant.label} takes more memory than the GPU has: "
            f"lower it ({one_line(error)})"
        ) from error


def _batches(task: _Task, loaded: LoadedModel, device: torch.device) -> Generator[DistillationBatch, None, None]:
    """Yield batches of views without end; they depend on seed, images, and whether these are kept in memory."""
    config, qat = task.config, task.config.qat
    assert qat is not None
    share = Share(batch_size=qat.batch_size, seed=config.seed, shuffle_buffer=qat.shuffle_buffer)
    images = open_images(task.images, loaded, share, labels=False)
    reads_kept = config.mode == "sparse" and refusal(loaded.model) is None
    views = as_views(images, qat.augment, loaded, seed=config.seed, reads_kept=reads_kept, tell=True)
    for epoch in count():
        for batch in views.batches(epoch, device):
            yield batch if reads_kept else _whole(batch, whole_image(loaded))


def _whole(batch: DistillationBatch, num_patches: int) -> DistillationBatch:
    """Let every patch of the images be read."""
    patches = torch.arange(num_patches, device=batch.pixels.device)
    keep = patches.expand(len(batch.pixels), -1)
    return replace(batch, keep_indices=keep, num_kept=torch.full_like(batch.num_kept, num_patches))


def train_graph(
    graph: LearnedGraph,
    answers: Answers,
    batches: Iterator[DistillationBatch],
    config: QatConfig,
    done: Count,
    label: str,
) -> Trained:
    """Train a quantized model to answer as the teacher does.

    Args:
        graph: to train.
        answers: of the teacher.
        batches: at least as many as there are steps.
        config: of the training.
        done: what to call with the number of images of each step.
        label: of the variant, for messages.

    Raises:
        NonFiniteError: the loss, or at the end a parameter, is NaN or infinite.
    """
    own, scales = graph.parameter_groups()
    optimizer = torch.optim.AdamW(
        [{"params": own, "lr": config.lr}, {"params": scales, "lr": config.scale_lr}], weight_decay=0.0
    )
    schedule = LambdaLR(optimizer, lambda step: lr_factor(step / config.steps, warmup=0.0, shape="cosine"))
    losses = []
    for step, batch in enumerate(islice(batches, config.steps)):
        optimizer.zero_grad()
        loss = soft_label_loss(graph(batch), answers(batch)[0], config.temperature).mean()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise NonFiniteError(step, f"qat loss of {label}")
        loss.backward()
        optimizer.step()
        schedule.step()
        done(len(batch.pixels))
    _check_finite([*own, *scales], config.steps, label)
    return Trained(graph.values(), losses)


def _check_finite(parameters: Sequence[nn.Parameter], steps: int, label: str) -> None:
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise NonFiniteError(steps, f"qat parameter of {label}")
