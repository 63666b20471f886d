"""Storage, resources and errors of Ray Train runs, for all jobs that have workers."""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from fsspec.implementations.local import LocalFileSystem
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from ray.train.v2._internal.constants import V2_ENABLED_ENV_VAR, is_v2_enabled
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from torch import nn

from pipeline import storage
from pipeline.cluster import free_resources, is_fixed_size, own_errors, own_signals
from pipeline.credentials import without_credentials
from pipeline.errors import ConfigError, IncompleteError, PipelineError, as_line
from pipeline.log import logger
from pipeline.workers import WorkersConfig

# Folder under a job's output while its workers run. It is deleted recursively, so its name must be unique to the run.
_TRAIN_FOLDER = ".ray-train-"
# Ray Train waits as long for its workers to start, and then again.
_START_ATTEMPT_S = 60
# Torch's own limit for workers that wait for each other.
_PATIENCE_S = 1800.0


def run_config(folder: str, name: str, workers: WorkersConfig) -> RunConfig:
    """Keep a run's state in a folder at any fsspec location.

    Args:
        folder: folder under the job's output, at any fsspec location.
        name: name of the run. A run of the same name in the same folder goes on from its last checkpoint.
        workers: settings of the workers, which say how long to wait for them to start.
    """
    fs, path = storage.filesystem(storage.absolute(folder))
    local = isinstance(fs, LocalFileSystem)
    return RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=None if local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
        failure_config=FailureConfig(
            # Ray Train cannot tell which errors would come again; `fit_with_retries` can.
            max_failures=0,
            controller_failure_limit=math.ceil(workers.start_timeout_s / _START_ATTEMPT_S) - 1,
        ),
    )


def resources_per_worker(workers: WorkersConfig) -> dict[str, float]:
    """Return what a worker takes of the joined cluster, by Ray's names."""
    use_gpu = workers.device == "cuda" or (workers.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    return {"CPU": float(workers.cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})


def resources_of(workers: WorkersConfig) -> dict[str, float]:
    """Return the resources that all workers, or this process in their place, take of the cluster, by Ray's names.

    Ray knows nothing of what this process takes; it sees the GPU that an actor on its machine is given too.
    """
    if workers.size:
        return {name: workers.size * amount for name, amount in resources_per_worker(workers).items()}
    on_gpu = workers.device != "cpu" and torch.cuda.is_available()
    return {"CPU": float(workers.cpus_per_worker)} | ({"GPU": 1.0} if on_gpu else {})


def worker_configs(
    workers: WorkersConfig,
    *,
    grow_every_s: float = math.inf,
    patience_s: float = 0.0,
) -> tuple[ScalingConfig, TorchConfig]:
    """Return the resources of the workers and their communication backend: nccl between GPUs, gloo between CPUs.

    Args:
        workers: settings of the workers; `size` must be 1 or more.
        grow_every_s: seconds between two looks for room for more workers, if there are fewer than `workers.size`.
            Adding workers starts all of them again, from the last checkpoint.
        patience_s: seconds that a worker may keep the others waiting beyond half an hour, which is torch's own limit.

    Raises:
        ConfigError: the cluster is too small and no node can join it, so that Ray would wait for ever; or the
            environment asks for the first version of Ray Train.
    """
    if not is_v2_enabled():
        found = f"{V2_ENABLED_ENV_VAR} is {os.environ.get(V2_ENABLED_ENV_VAR)!r}"
        raise ConfigError(f"{found}, and workers need Ray Train V2: unset it, or set workers.size to 0")
    total, needed = ray.cluster_resources(), resources_per_worker(workers)
    for name, amount in needed.items():
        if workers.fewest * amount > total.get(name, 0):
            setting = "workers.size" if workers.fewest == workers.size else "workers.min_size"
            text = (
                f"{setting} {workers.fewest} needs {workers.fewest * amount:g} {name}s, {amount:g} for each, and the "
                f"cluster has {total.get(name, 0):g}"
            )
            if is_fixed_size():
                without_gpus = (
                    "; without GPUs, set workers.device to cpu" if name == "GPU" and not total.get(name) else ""
                )
                raise ConfigError(text + without_gpus)
            logger.info(f"{text}: waiting for more")
    scaling = ScalingConfig(
        num_workers=workers.size if workers.fewest == workers.size else (workers.fewest, workers.size),
        use_gpu="GPU" in needed,
        resources_per_worker=needed,
        elastic_resize_monitor_interval_s=grow_every_s,
    )
    return scaling, TorchConfig(
        backend="nccl" if "GPU" in needed else "gloo", timeout_s=round(_PATIENCE_S + patience_s)
    )


def check_readers(workers: WorkersConfig, setting: str, cache_gb: float) -> None:
    """Refuse workers that hold every core: they would wait for ever for the tasks that read their images.

    Args:
        workers: settings of the workers of a training whose images are streamed.
        setting, cache_gb: name and value of the setting that says how many images are kept in memory.

    Raises:
        ConfigError: the workers might leave no core.
    """
    there, on_gpus = ray.cluster_resources(), "GPU" in resources_per_worker(workers)
    cores, num_workers = there.get("CPU", 0.0), workers.size
    in_memory = f"raise {setting} ({cache_gb:g}) so that the images fit in memory"
    elastic = workers.fewest < workers.size
    if elastic and not on_gpus:
        raise ConfigError(
            f"workers.min_size {workers.fewest} lets workers take every core that there is, and leave none to read "
            f"images: leave it out, or {in_memory}"
        )
    if elastic:
        # As many workers as there are GPUs now start at once.
        num_workers = min(workers.size, int(there.get("GPU", 0)))
    held = num_workers * workers.cpus_per_worker
    # With fewer cores than a fixed number of workers holds, nodes are yet to come.
    if cores - held < 1 and (elastic or cores >= held):
        raise ConfigError(
            f"{num_workers} workers would hold {held} of {cores:g} CPUs and leave none to read images: "
            f"take fewer, or {in_memory}"
        )


def is_any_node_leaving() -> bool:
    """Return whether Ray knows that a worker's node will be taken, such as a spot instance; waits for all workers."""
    return ray.train.get_preemption_info() is not None


def parallelize(module: nn.Module) -> nn.Module:
    """Wrap a module in `DistributedDataParallel`, where there are several workers."""
    # BatchNorm's statistics are averaged over the workers after each epoch: every image counts, not rank 0's alone.
    return prepare_model(module, parallel_strategy_kwargs={"broadcast_buffers": False})


def run_workers(
    work: Callable[[], Any],
    workers: WorkersConfig,
    resources: tuple[ScalingConfig, TorchConfig],
    *,
    output: str,
    name: str,
) -> Any:
    """Run a function on every worker, and return its result on rank 0.

    Nothing is resumed from Ray Train's own state, which is kept in a hidden folder of the output and deleted at the
    end.

    Args:
        work: function to call on each worker.
        workers: settings of the workers, which say how often they may fail.
        resources: resources and communication backend of the workers, from `worker_configs`.
        output: folder of the job.
        name: name of the run, which holds its digest.

    Raises:
        PipelineError: see `fit`.
    """
    scaling, torch_config = resources
    folder = storage.join(output, _TRAIN_FOLDER + name)

    def trainer() -> TorchTrainer:
        # Remove the state that a killed job, or the attempt before, left there.
        with storage.writing_to(output):
            storage.remove_folder(folder)
        return TorchTrainer(
            partial(_with_own_errors, work),
            torch_config=torch_config,
            scaling_config=scaling,
            run_config=run_config(folder, name, workers),
        )

    try:
        return fit_with_retries(trainer, workers.max_failures)
    finally:
        with storage.writing_to(output):
            storage.remove_folder(folder)


def _with_own_errors(work: Callable[[], Any]) -> Any:
    """Do work on a worker; an error of ours from a task that it waited for is raised as it is."""
    with own_errors():
        return work()


def fit_with_retries(make_trainer: Callable[[], TorchTrainer], max_failures: int) -> Any:
    """Run the workers, and run them again after a failure that may not repeat; see `fit`.

    Args:
        make_trainer: function that makes a new trainer for each attempt.
        max_failures: number of attempts that may fail before the last one.

    Raises:
        PipelineError: as `fit`.
    """
    for left in reversed(range(max_failures + 1)):
        try:
            return fit(make_trainer())
        except PipelineError as error:
            if not left or not error.is_transient or not _is_of_workers(error.__cause__):
                raise
            logger.warning(f"{error}; trying again, {left} of {max_failures} failures left")
    raise AssertionError("the last attempt returns or raises")


def _is_of_workers(failure: BaseException | None) -> bool:
    # If a worker dies just as its work is started, Ray Train reports it as a failure of its own controller.
    if isinstance(failure, ControllerError):
        return isinstance(failure.controller_failure, RayActorError)
    return isinstance(failure, WorkerGroupError)


def fit(trainer: TorchTrainer) -> Any:
    """Run the workers, and return the result of the train function on rank 0.

    Raises:
        PipelineError: as a worker raised it, or an IncompleteError when workers were lost too often.
    """
    try:
        # Ray Train's handler of SIGINT would outlive it, and turn Ctrl-C into exit code 0.
        with own_signals():
            result: Any = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    if result.error is not None:
        raise _cause(result.error) from result.error
    return result.return_value


def _cause(error: Exception) -> PipelineError:
    """Return the error of ours that stopped the workers, or one that says in a line what Ray says."""
    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values()) or [error]
    ours = [failure for failure in failures if isinstance(failure, PipelineError)]
    if ours:
        # An error that would come again goes first: other workers may have failed because that one did.
        return min(ours, key=lambda failure: failure.is_transient)
    first = failures[0]
    # Credentials are masked before the text is cut, because half of an address would not be recognized.
    reason = without_credentials(as_line(first))[-400:]
    return IncompleteError(f"the workers failed ({free_resources()}): {type(first).__name__}: {reason}")
