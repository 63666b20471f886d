"""Start the Ray Train workers of a distillation, and set each of them up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from torch import nn

from pipeline import storage
from pipeline.cluster import connect
from pipeline.dataset.collection import ImageCollection
from pipeline.distillation.answers import Answers, as_reader
from pipeline.distillation.config import DistillationConfig
from pipeline.distillation.images import Images, MemoryImages, StreamedImages
from pipeline.distillation.loop import Group, ImageSource, StudentTrainer
from pipeline.distillation.objective import DTYPES
from pipeline.distillation.students import build_student
from pipeline.errors import CheckpointError, ConfigError, NonFiniteError
from pipeline.models import LoadedModel, load_model, weight_digest
from pipeline.precision import announce_dtype
from pipeline.training import fit, run_config, worker_configs

# Under the output, while the workers run.
TRAIN_FOLDER = "train"


@dataclass(frozen=True)
class Task:
    """What a worker is sent: where things are, and images that fit into memory as a reference to Ray's object store.

    Attributes:
        config: with absolute local paths.
        digest: of the run.
        teacher_digest, student_digest: of their weights, as the driver found or made them.
        images, labelled: where they are; labelled ones may be none.
    """

    config: DistillationConfig
    digest: str
    teacher_digest: str
    student_digest: str
    images: ImageCollection | list[ray.ObjectRef]
    labelled: ImageCollection | list[ray.ObjectRef] | None

    @property
    def streams(self) -> bool:
        """Whether workers read images from files, with tasks of Ray Data."""
        return isinstance(self.images, ImageCollection) or isinstance(self.labelled, ImageCollection)


def prepare_training(task: Task, *, fixed_size: bool) -> Callable[[], list[str]]:
    """Find out whether the training can run on this cluster.

    Args:
        fixed_size: no node can join the cluster any more.

    Returns:
        What runs it, on the workers or in this process, and gives the SHA-256 of the weights that each worker ended
        with; the weights themselves lie in the last checkpoint. It raises NonFiniteError when the loss becomes NaN or
        infinite, any PipelineError of a worker, and IncompleteError where they could not start or kept dying.

    Raises:
        ConfigError: the cluster is too small.
    """
    config = task.config
    if not config.num_workers:
        has_gpu = torch.cuda.is_available()
        if config.device == "cuda" and not has_gpu:
            raise ConfigError("device is 'cuda', but this process sees no GPU")
        device = torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")
        announce_dtype(config.dtype, on_gpu=device.type == "cuda")
        return lambda: _outcome(_train_here(task, device))
    scaling, torch_config = worker_configs(
        config.num_workers, config.cpus_per_worker, config.device, fixed_size=fixed_size
    )
    if task.streams:
        _check_readers(config)
    announce_dtype(config.dtype, on_gpu=bool(scaling.use_gpu), on_nodes=True)
    return lambda: _outcome(_fit(task, scaling, torch_config))


def _outcome(outcome: list[str] | NonFiniteError) -> list[str]:
    if isinstance(outcome, NonFiniteError):
        raise outcome
    return outcome


def _fit(task: Task, scaling: ScalingConfig, torch_config: TorchConfig) -> list[str] | NonFiniteError:
    folder = storage.join(task.config.output, TRAIN_FOLDER)
    trainer = TorchTrainer(
        partial(_train_on_worker, task),
        torch_config=torch_config,
        scaling_config=scaling,
        run_config=run_config(
            folder,
            f"distill-{task.digest[:8]}",
            max_failures=task.config.max_failures,
            start_timeout_s=task.config.start_timeout_s,
        ),
    )
    try:
        return fit(trainer)
    finally:
        # Checkpoints lie elsewhere, see `state`; it holds nothing to go on from.
        storage.remove_folder(folder)


def _check_readers(config: DistillationConfig) -> None:
    """Workers that hold every core would wait for ever for the tasks that read their images."""
    cores, held = ray.cluster_resources().get("CPU", 0.0), config.num_workers * config.cpus_per_worker
    # With fewer cores than the workers hold, nodes are yet to come.
    if 0 <= cores - held < 1:
        raise ConfigError(
            f"{config.num_workers} workers would hold {held} of {cores:g} CPUs and leave none to read images: "
            f"take fewer, or raise cache_gb ({config.cache_gb:g}) so that the images fit in memory"
        )


def _train_on_worker(task: Task) -> list[str] | NonFiniteError:
    context = ray.train.get_context()
    connect()
    with _threads(task.config.cpus_per_worker):
        group = Group(context.get_world_rank(), context.get_world_size(), get_device())
        return train_on(task, group, _parallelize)


def _train_here(task: Task, device: torch.device) -> list[str] | NonFiniteError:
    with _threads(task.config.cpus_per_worker):
        return train_on(task, Group(0, 1, device))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parallelize(module: nn.Module) -> nn.Module:
    """Wrap a module in `DistributedDataParallel`, where there are several workers."""
    # BatchNorm's statistics are averaged over the workers after each epoch: every image counts, not rank 0's alone.
    return prepare_model(module, parallel_strategy_kwargs={"broadcast_buffers": False})


def train_on(
    task: Task, group: Group, parallelize: Callable[[nn.Module], nn.Module] | None = None
) -> list[str] | NonFiniteError:
    """Train as one of the workers.

    Args:
        task: see `Task`.
        group: the workers.
        parallelize: see `StudentTrainer`.

    Returns:
        SHA-256 of the weights that each worker ended with; or, so that Ray does not try again what would end the same
        way, the error that the loss is not finite.
    """
    config = task.config
    teacher = load_model(config.teacher)
    student = build_student(config.student, teacher, seed=config.seed)
    if (teacher.digest, weight_digest(student.model)) != (task.teacher_digest, task.student_digest):
        raise CheckpointError("the weights of teacher or student are not the same on every machine")
    answers = Answers(
        as_reader(teacher.model).to(group.device), with_tokens=config.token_weight > 0, dtype=DTYPES[config.dtype]
    )
    images = _share(task.images, teacher, config, group, labels=config.label_weight > 0)
    labelled = None if task.labelled is None else _share(task.labelled, teacher, config, group, labels=True)
    if isinstance(images, MemoryImages):
        answers.keep(
            images.images, group.device, batch_size=config.batch_size, rank=group.rank, world_size=group.world_size
        )
    try:
        return StudentTrainer(config, task.digest, student, answers, images, labelled, group, parallelize).train()
    except NonFiniteError as error:
        return error


def _share(
    where: ImageCollection | list[ray.ObjectRef],
    teacher: LoadedModel,
    config: DistillationConfig,
    group: Group,
    *,
    labels: bool,
) -> ImageSource:
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "rank": group.rank,
        "world_size": group.world_size,
    }
    if isinstance(where, ImageCollection):
        return StreamedImages(where, teacher, labels=labels, shuffle_buffer=config.shuffle_buffer, **common)
    images: Images = ray.get(where[0])
    return MemoryImages(images, **common)
