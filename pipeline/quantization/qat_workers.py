"""Set up a worker of quantization-aware distillation, and train on it."""

import copy
from dataclasses import dataclass

import ray
import ray.train
import torch
from torch import nn

from pipeline.cluster import connect
from pipeline.dataset.collection import ImageCollection
from pipeline.distillation.answers import Answers, as_reader
from pipeline.distillation.descent import Group
from pipeline.distillation.opening import as_views, open_images
from pipeline.distillation.workers import group_of_worker
from pipeline.errors import NonFiniteError
from pipeline.models import LoadedModel
from pipeline.out_of_memory import naming_batch_size
from pipeline.quantization.channels import ChannelRanges
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.graphs import export_images
from pipeline.quantization.held_back import HeldBack, hold_back
from pipeline.quantization.learned import LearnedGraph
from pipeline.quantization.qat_checkpoints import checkpoint_folder, remove_variant
from pipeline.quantization.qat_config import QatConfig
from pipeline.quantization.qat_loop import QatCheckpoints, QatImages, QatTrainer, Trained, WholeImages
from pipeline.quantization.reading import calibration_reads_kept, whole_image
from pipeline.quantization.transforms import model_to_quantize
from pipeline.quantization.variants import Values, Variant
from pipeline.workers import load_again, pick_device, threads
from pipeline.workers.progress import Count


@dataclass(frozen=True)
class QatTask:
    """Work for each worker.

    Attributes:
        config: settings with absolute local paths.
        digest: digest of the run.
        teacher_digest: SHA-256 of the teacher's weights as the driver loaded them.
        channels: ranges by which the model is smoothed; None if it is not.
        images: images to train on: decoded in Ray's object store, or as files.
        left_out: ids of the held-back images among them.
        work: reference to the held-back images, decoded, and to the variants with their starting values.
        count: function that is called with the number of images that were just read.
    """

    config: CalibrationConfig
    digest: str
    teacher_digest: str
    channels: ChannelRanges | None
    images: ImageCollection | list[ray.ObjectRef]
    left_out: frozenset[str]
    work: list[ray.ObjectRef]
    count: Count

    @property
    def qat(self) -> QatConfig:
        assert self.config.qat is not None
        return self.config.qat


def train_on_worker(task: QatTask) -> dict[str, Trained]:
    """Train as one of Ray Train's workers; see `train_all`."""
    connect()
    return train_all(task, group_of_worker())


def train_here(task: QatTask) -> dict[str, Trained]:
    """Train in this process; see `train_all`."""
    return train_all(task, Group(0, 1, pick_device(task.config.workers.device, "workers.device")))


def train_all(task: QatTask, group: Group) -> dict[str, Trained]:
    """Train one variant after another, and return each by its label.

    Args:
        task: settings, images and digests of the models to train with; equal on all workers.
        group: the workers of the training.

    Raises:
        NonFiniteError: a loss became NaN or infinite.
        ConfigError: a step does not fit into the memory of the GPU.
        PipelineError: an image or a checkpoint cannot be read.
    """
    config = task.config
    with threads(config.workers.cpus_per_worker):
        loaded = load_again(config.teacher, task.teacher_digest)
        program = export_images(loaded.model, config.placement)
        model = model_to_quantize(config, loaded.model, task.channels, program)
        # Answers fill the slot of the model that they read; smoothing may have left the same one.
        model = copy.deepcopy(model).to(group.device)
        answers = Answers(as_reader(loaded.model).to(group.device), with_tokens=False, dtype=torch.float32)
        images, held_back, work = _open(task, loaded, answers, group)
        setup = _Setup(task, model, answers, images, held_back, group)
        return {variant.label: _train_one(setup, variant, values) for variant, values in work}


@dataclass(frozen=True)
class _Setup:
    """Parts of a `QatTrainer` that are the same for all variants on a worker."""

    task: QatTask
    model: nn.Module
    answers: Answers
    images: QatImages
    held_back: HeldBack | None
    group: Group


def _open(
    task: QatTask, loaded: LoadedModel, answers: Answers, group: Group
) -> tuple[QatImages, HeldBack | None, list[tuple[Variant, Values]]]:
    """Return a worker's images to train on, those that are held back, and what to train."""
    config, qat = task.config, task.qat
    share = group.share(qat.batch_size, seed=config.seed, shuffle_buffer=qat.shuffle_buffer)
    kept = calibration_reads_kept(config, loaded)
    images = open_images(task.images, loaded, share, labels=False, reads_kept=kept, left_out=task.left_out)
    views = as_views(images, qat.augment, loaded, seed=config.seed, reads_kept=kept, notes=group.rank == 0)
    read, work = ray.get(task.work[0])
    held_back = hold_back(read, answers, group, batch_size=qat.batch_size) if read else None
    return views if kept else WholeImages(views, whole_image(loaded)), held_back, work


def _train_one(setup: _Setup, variant: Variant, values: Values) -> Trained:
    """Train a variant; nothing of it stays on the device.

    Raises:
        NonFiniteError: a loss or parameter became NaN or infinite.
        ConfigError: a step does not fit into memory, and would not on another try either.
    """
    task, group = setup.task, setup.group
    with naming_batch_size("qat.batch_size", task.qat.batch_size):
        trainer = QatTrainer(
            config=task.qat,
            label=variant.label,
            graph=LearnedGraph(setup.model, task.config.placement, variant, values).to(group.device),
            answers=setup.answers,
            images=setup.images,
            held_back=setup.held_back,
            group=group,
            checkpoints=QatCheckpoints(checkpoint_folder(task.config.output, variant, task.digest), task.digest),
            done=task.count,
        )
        try:
            return trainer.train(values)
        except NonFiniteError:
            if group.rank == 0:
                # This variant's checkpoints may hold values that are not finite; those of other variants are good.
                remove_variant(task.config.output, variant, task.digest)
            raise
