"""Start the Ray Train workers of a distillation, and set each of them up."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import ray
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, get_device

from pipeline.cluster import connect
from pipeline.dataset.collection import ImageCollection
from pipeline.distillation.answers import Answers, as_reader
from pipeline.distillation.arriving import Arriving, ArrivingImages
from pipeline.distillation.config import DistillationConfig
from pipeline.distillation.descent import Group
from pipeline.distillation.images import MemoryImages
from pipeline.distillation.loop import StudentTrainer
from pipeline.distillation.objective import DTYPES
from pipeline.distillation.opening import ImageSource, as_views, open_images
from pipeline.distillation.order import Share
from pipeline.distillation.students import Student, build_student, student_or_teacher_reads_kept
from pipeline.models import LoadedModel, weight_digest
from pipeline.out_of_memory import naming_batch_size
from pipeline.precision import announce_dtype
from pipeline.workers import check_same_digest, load_again, pick_device, threads
from pipeline.workers.training import check_readers, is_any_node_leaving, parallelize, run_workers, worker_configs

# Adding workers starts all of them again, which takes tens of seconds, and more where models are large.
_GROW_AT_MOST_EVERY_S = 300.0


@dataclass(frozen=True)
class TrainingTask:
    """Work for each worker: locations, and images that fit into memory as a reference to Ray's object store.

    Attributes:
        config: settings with absolute local paths.
        digest: digest of the run.
        teacher_digest, student_digest: SHA-256 of the weights, as the driver loaded or made them.
        images, labeled: the images: files, a reference to Ray's object store, or images yet to be made; `labeled` may
            be None.
    """

    config: DistillationConfig
    digest: str
    teacher_digest: str
    student_digest: str
    images: ImageCollection | list[ray.ObjectRef] | Arriving
    labeled: ImageCollection | list[ray.ObjectRef] | None

    @property
    def streams(self) -> bool:
        """Whether workers read images from files, with tasks of Ray Data."""
        anew = isinstance(self.images, Arriving) and not self.images.in_memory
        return anew or isinstance(self.images, ImageCollection) or isinstance(self.labeled, ImageCollection)


def prepare_training(task: TrainingTask) -> Callable[[], list[str]]:
    """Check that the training can run on this cluster, and return the function that runs it.

    Args:
        task: settings, images and digests of the models to train with.

    Returns:
        A function that trains, on the workers or in this process, and returns the SHA-256 of the weights that each
        worker ended with; the weights themselves lie in the last checkpoint. It raises NonFiniteError when the loss
        becomes NaN or infinite, any PipelineError of a worker, and IncompleteError if workers could not start or kept
        dying.

    Raises:
        ConfigError: the cluster is too small and no node can join it, or this process has no GPU and one is demanded.
    """
    config = task.config
    if not config.workers.size:
        device = pick_device(config.workers.device, "workers.device")
        announce_dtype(config.dtype, on_gpu=device.type == "cuda")
        return partial(_train_here, task, device)
    # Streamed images come in another order to more workers, so growing would restart the epoch.
    arriving = task.images if isinstance(task.images, Arriving) else None
    grows = not task.streams and arriving is None
    resources = worker_configs(
        config.workers,
        grow_every_s=max(_GROW_AT_MOST_EVERY_S, 4 * 60 * config.checkpoint_minutes) if grows else math.inf,
        patience_s=0.0 if arriving is None else arriving.patience_s,
    )
    if task.streams:
        check_readers(config.workers, "cache_gb", config.cache_gb)
    announce_dtype(config.dtype, on_gpu=bool(resources[0].use_gpu), on_nodes=True)
    return partial(_fit, task, resources)


def _fit(task: TrainingTask, resources: tuple[ScalingConfig, TorchConfig]) -> list[str]:
    # Checkpoints lie elsewhere, see `state`.
    work, config = partial(_train_on_worker, task), task.config
    return run_workers(work, config.workers, resources, output=config.output, name=f"distill-{task.digest[:8]}")


def _train_on_worker(task: TrainingTask) -> list[str]:
    connect()
    with threads(task.config.workers.cpus_per_worker):
        return train_on(task, group_of_worker())


def _train_here(task: TrainingTask, device: torch.device) -> list[str]:
    with threads(task.config.workers.cpus_per_worker):
        return train_on(task, Group(0, 1, device))


def group_of_worker() -> Group:
    """Return the workers of Ray Train that this process is one of."""
    context = ray.train.get_context()
    return Group(context.get_world_rank(), context.get_world_size(), get_device(), parallelize, is_any_node_leaving)


def train_on(task: TrainingTask, group: Group) -> list[str]:
    """Train as one of the workers.

    Args:
        task: settings, images and digests of the models to train with; equal on all workers.
        group: the workers that train together.

    Returns:
        SHA-256 of the weights that each worker ended with.

    Raises:
        OtherModelError: teacher or student has other weights than on the driver.
        NonFiniteError: the loss became NaN or infinite.
        DatasetError: an image cannot be read.
        ConfigError: a batch does not fit into memory.
    """
    config = task.config
    teacher = load_again(config.teacher, task.teacher_digest)
    student = build_student(config.student, teacher, seed=config.seed)
    check_same_digest("the untrained student", weight_digest(student.model), task.student_digest)
    with naming_batch_size("batch_size", config.batch_size):
        return _train(task, group, teacher, student)


def _train(task: TrainingTask, group: Group, teacher: LoadedModel, student: Student) -> list[str]:
    config = task.config
    answers = Answers(
        as_reader(teacher.model).to(group.device), with_tokens=config.token_weight > 0, dtype=DTYPES[config.dtype]
    )
    share = group.share(config.batch_size, seed=config.seed, shuffle_buffer=config.shuffle_buffer)
    kept, labeled = student_or_teacher_reads_kept(teacher, student), None
    images = _open_share(task.images, teacher, share, labels=config.label_weight > 0, reads_kept=kept)
    if task.labeled is not None:
        labeled = open_images(task.labeled, teacher, share, labels=True, reads_kept=kept)
    shown = as_views(images, config.augment, teacher, seed=config.seed, reads_kept=kept, notes=group.rank == 0)
    if isinstance(shown, MemoryImages):
        answers.keep(
            shown.images, group.device, batch_size=config.batch_size, rank=group.rank, world_size=group.world_size
        )
    trainer = StudentTrainer(
        config=config,
        digest=task.digest,
        student=student,
        answers=answers,
        images=shown,
        labeled=labeled,
        group=group,
    )
    return trainer.train()


def _open_share(
    where: ImageCollection | list[ray.ObjectRef] | Arriving,
    teacher: LoadedModel,
    share: Share,
    *,
    labels: bool,
    reads_kept: bool,
) -> ImageSource | ArrivingImages:
    if isinstance(where, Arriving):
        return ArrivingImages(where, teacher, share, labels=labels)
    return open_images(where, teacher, share, labels=labels, reads_kept=reads_kept)
