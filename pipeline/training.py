"""What all Ray Train runs share: storage, resources and errors."""

import math
import os
from typing import Any, Literal

import pyarrow.fs
import ray
from fsspec.implementations.local import LocalFileSystem
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import V2_ENABLED_ENV_VAR, is_v2_enabled
from ray.train.v2.api.exceptions import TrainingFailedError

from pipeline import storage
from pipeline.cluster import free_resources, own_signals
from pipeline.errors import ConfigError, IncompleteError, PipelineError
from pipeline.log import logger

Device = Literal["auto", "cpu", "cuda"]
# Ray Train waits as long for its workers to start, and then again.
_START_ATTEMPT_S = 60


def run_config(folder: str, name: str, *, max_failures: int, start_timeout_s: int) -> RunConfig:
    """Keep a run's state in a folder at any fsspec location.

    Args:
        folder: under the job's output.
        name: of the run; a run of the same name in the same folder goes on from its last checkpoint.
        max_failures: how often workers may be lost.
        start_timeout_s: to wait for all workers to start; rounded up to whole minutes.
    """
    fs, path = storage.filesystem(storage.absolute(folder))
    local = isinstance(fs, LocalFileSystem)
    return RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=None if local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
        failure_config=FailureConfig(
            max_failures=max_failures, controller_failure_limit=math.ceil(start_timeout_s / _START_ATTEMPT_S) - 1
        ),
    )


def worker_configs(
    num_workers: int, cpus_per_worker: int, device: Device, *, fixed_size: bool
) -> tuple[ScalingConfig, TorchConfig]:
    """What the workers ask of the cluster, and how they talk: nccl between GPUs, gloo between CPUs.

    Args:
        num_workers: at least 1.
        cpus_per_worker: cores of each.
        device: `auto` is a GPU for each worker where the cluster has any.
        fixed_size: no node can join the cluster any more.

    Raises:
        ConfigError: a fixed cluster is too small, and Ray would wait for a larger one for ever; or the environment asks
            for the first version of Ray Train.
    """
    if not is_v2_enabled():
        found = f"{V2_ENABLED_ENV_VAR} is {os.environ.get(V2_ENABLED_ENV_VAR)!r}"
        raise ConfigError(f"{found}, and workers need Ray Train V2: unset it, or set num_workers to 0")
    total = ray.cluster_resources()
    use_gpu = device == "cuda" or (device == "auto" and total.get("GPU", 0) > 0)
    needed = {"CPU": float(cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})
    for name, amount in needed.items():
        if num_workers * amount > total.get(name, 0):
            text = f"{num_workers} workers with {amount:g} {name} each, and there are {total.get(name, 0):g} {name}s"
            if fixed_size:
                raise ConfigError(text)
            logger.info(f"{text}: waiting for more")
    scaling = ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=needed)
    return scaling, TorchConfig(backend="nccl" if use_gpu else "gloo")


def fit(trainer: TorchTrainer) -> Any:
    """Run the workers; gives what the train function returned on rank 0.

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
    """The error of ours that stopped the workers, or one that says in a line what Ray says."""
    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        if isinstance(failure, PipelineError):
            return failure
    first = failures[0]
    reason = " ".join(str(first).split())[-400:]
    return IncompleteError(f"the workers failed ({free_resources()}): {type(first).__name__}: {reason}")
