"""Ray Train: the workers that train together, and what each of them sets up."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pyarrow.fs
import ray
import ray.train
import torch
from fsspec.implementations.local import LocalFileSystem
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline import storage
from pipeline.cluster import connect
from pipeline.dataset.sources import Source
from pipeline.distillation.answers import Answers
from pipeline.distillation.config import DistillationConfig
from pipeline.distillation.images import Images, MemoryImages, StreamedImages
from pipeline.distillation.loop import DTYPES, ImageSource, Rank, StudentTrainer
from pipeline.distillation.students import build_student
from pipeline.errors import ConfigError, IncompleteError, NonFiniteError, PipelineError
from pipeline.models import LoadedModel, load_model
from pipeline.vit import SubsetViT

RAY_FOLDER = "ray"
# Ray Train tries to start the workers for this long, and then again.
_START_ATTEMPT_S = 60


@dataclass(frozen=True)
class Task:
    """What a worker is sent: where things are, and small images themselves, as a reference into Ray's object store."""

    config: DistillationConfig
    digest: str
    images: Source | list[ray.ObjectRef]
    labelled: Source | list[ray.ObjectRef] | None


def train_student(task: Task) -> list[str]:
    """Train on the workers, or in this process; what comes out lies in the last checkpoint.

    Returns:
        SHA-256 of the weights that each worker ended with.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
        PipelineError: as a worker raised it; IncompleteError where they could not start or kept dying.
    """
    config = task.config
    if config.workers == 0:
        outcome = train_on(task, Rank(0, 1, torch.device("cuda" if _cuda_here(config) else "cpu")))
    else:
        outcome = _fit(task)
    if isinstance(outcome, NonFiniteError):
        raise outcome
    return outcome


def _cuda_here(config: DistillationConfig) -> bool:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but this process sees no GPU")
    return config.device != "cpu" and torch.cuda.is_available()


def check_resources(config: DistillationConfig, *, alone: bool) -> None:
    """Refuse what would wait for ever, and tell of what may have to wait.

    Args:
        alone: the cluster is one that no node will join.

    Raises:
        ConfigError: the workers never fit the cluster, or would leave no CPU for the tasks that read images.
    """
    if config.workers == 0:
        return
    cluster = ray.cluster_resources()
    for name, each in _resources(config).items():
        needed, total = each * config.workers, cluster.get(name, 0.0)
        text = f"{config.workers} workers need {needed:g} {name}s, the cluster has {total:g}"
        if needed > total and alone:
            raise ConfigError(text)
        if needed > total:
            print(f"distill: {text}; waiting up to {config.start_timeout_s} s for more", file=sys.stderr, flush=True)


def _resources(config: DistillationConfig) -> dict[str, float]:
    """Of one worker, as Ray names them."""
    gpus = ray.cluster_resources().get("GPU", 0)
    use_gpu = config.device == "cuda" or (config.device == "auto" and gpus >= config.workers)
    return {"CPU": config.cpus_per_worker, **({"GPU": 1} if use_gpu else {})}


def _fit(task: Task) -> Any:
    config, resources = task.config, _resources(task.config)
    use_gpu = "GPU" in resources
    trainer = TorchTrainer(
        partial(_worker, task),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=_run_config(task),
    )
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error


def _run_config(task: Task) -> ray.train.RunConfig:
    fs, path = storage.filesystem(storage.join(task.config.output, RAY_FOLDER))
    local = isinstance(fs, LocalFileSystem)
    attempts = -(-task.config.start_timeout_s // _START_ATTEMPT_S)
    return ray.train.RunConfig(
        name=f"distill-{task.digest[:8]}",
        storage_path=path,
        storage_filesystem=None if local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
        failure_config=ray.train.FailureConfig(
            max_failures=task.config.max_failures, controller_failure_limit=attempts - 1
        ),
    )


def _cause(error: ray.train.TrainingFailedError) -> PipelineError:
    """The error of ours that a worker raised; otherwise what Ray says, in one line."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for rank in sorted(failures):
        if isinstance(failures[rank], PipelineError):
            return cast(PipelineError, failures[rank])
    first = failures[min(failures)] if failures else error
    return IncompleteError(f"training stopped: {type(first).__name__}: {' '.join(str(first).split())[-500:]}")


def _worker(task: Task) -> list[str] | NonFiniteError:
    """Runs on each worker of Ray Train."""
    context = ray.train.get_context()
    torch.set_num_threads(task.config.cpus_per_worker)
    connect()
    return train_on(task, Rank(context.get_world_rank(), context.get_world_size(), get_device()))


def train_on(task: Task, place: Rank) -> list[str] | NonFiniteError:
    """Train as one of the workers.

    Returns:
        SHA-256 of the weights that each worker ended with; or, so that Ray does not try again what would end the same
        way, the error that the loss is not finite.
    """
    config = task.config
    teacher = load_model(config.teacher)
    student = build_student(config.student, teacher, seed=config.seed)
    answers = Answers(
        SubsetViT(teacher.model).to(place.device), with_tokens=config.token_weight > 0, dtype=DTYPES[config.dtype]
    )
    images = _share(task.images, teacher, config, place, labels=config.label_weight > 0)
    labelled = None if task.labelled is None else _share(task.labelled, teacher, config, place, labels=True)
    if isinstance(images, MemoryImages):
        answers.keep(
            images.images, place.device, batch_size=config.batch_size, rank=place.rank, world_size=place.world_size
        )
    try:
        return StudentTrainer(config, task.digest, student, answers, images, labelled, place).train()
    except NonFiniteError as error:
        return error


def _share(
    where: Source | list[ray.ObjectRef],
    teacher: LoadedModel,
    config: DistillationConfig,
    place: Rank,
    *,
    labels: bool,
) -> ImageSource:
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "rank": place.rank,
        "world_size": place.world_size,
    }
    if isinstance(where, Source):
        return StreamedImages(where, teacher, labels=labels, shuffle_buffer=config.shuffle_buffer, **common)
    images: Images = ray.get(where[0])
    return MemoryImages(images, **common)
