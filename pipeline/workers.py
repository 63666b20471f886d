"""Set up a process that works on a cluster: an actor of a synthesis, or one of Ray Train's workers."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from pipeline import storage
from pipeline.checks import check_range
from pipeline.errors import ConfigError, OtherModelError
from pipeline.models import LoadedModel, ModelConfig, load_model

C = TypeVar("C")
DeviceChoice = Literal["auto", "cpu", "cuda"]

# As calibrate and distill once had them at the top of their configs, see `pipeline.former_names`.
FLAT_NAMES = {
    "num_workers": "workers.size",
    "cpus_per_worker": "workers.cpus_per_worker",
    "device": "workers.device",
    "start_timeout_s": "workers.start_timeout_s",
    "max_failures": "workers.max_failures",
}


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The Ray Train workers of a job, and how long to wait for them.

    Args:
        size: number of workers; 0 does the work in the job's own process.
        min_size: the fewest workers to run with when the cluster cannot provide `size`, or loses nodes; by default
            `size`. A training adds workers when there is room again. Ray waits for these few without a time limit,
            whatever `start_timeout_s` is.
        cpus_per_worker: CPU cores, and torch threads, of each worker.
        device: `auto` takes a GPU per worker if the cluster has any.
        start_timeout_s: seconds to wait for all workers, while nodes start; rounded up to minutes.
        max_failures: how often workers may be lost before the job gives up; a training goes on from its last
            checkpoint each time. Errors that would come again end it at once.
    """

    size: int = 1
    min_size: int | None = None
    cpus_per_worker: int = 1
    device: DeviceChoice = "auto"
    start_timeout_s: int = 900
    max_failures: int = 3

    def __post_init__(self) -> None:
        for name, least in (("size", 0), ("cpus_per_worker", 1), ("start_timeout_s", 1), ("max_failures", 0)):
            check_range(f"workers.{name}", getattr(self, name), least)
        if self.min_size is not None and not self.size:
            raise ConfigError(f"workers.min_size is {self.min_size}, and workers.size is 0: leave workers.min_size out")
        check_range("workers.min_size", self.min_size, 1, self.size)

    def check_batch_size(self, setting: str, size: int) -> None:
        """Check that each worker gets an image of a batch.

        Raises:
            ConfigError: the batch is smaller; it names the setting.
        """
        if size < self.size:
            raise ConfigError(f"{setting} is {size}, which is less than one image for each of {self.size} workers")

    @property
    def fewest(self) -> int:
        """The number of workers that must be there."""
        return self.size if self.min_size is None else self.min_size


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads, the cores that a worker was given; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(wanted: DeviceChoice, setting: str) -> torch.device:
    """Return the device of this process: its GPU where it has one and is to use it.

    An actor pinned to a logical GPU on a machine without hardware computes on the CPU.

    Args:
        wanted: as set.
        setting: its dotted name, for the message.

    Raises:
        ConfigError: a GPU is demanded and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError(f"{setting} is 'cuda', and this process sees no CUDA device")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """Return the model of a GPU, such as `NVIDIA H100 80GB HBM3`, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def with_absolute_paths(config: C) -> C:
    """Return a config with absolute local paths, of models and output: workers have working folders of their own.

    Raises:
        ConfigError: the folder of a `local-dir:` name is not local.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(value, ModelConfig):
            changes[field.name] = value.located()
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_absolute_paths(value)
        elif field.name == "output":
            changes[field.name] = storage.absolute(value)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def load_again(config: ModelConfig, digest: str) -> LoadedModel:
    """Load a teacher on a worker as the driver did.

    Args:
        config: with absolute local paths.
        digest: of the weights that the driver loaded.

    Raises:
        OtherModelError: the weights are others.
        PipelineError: as `load_model`.
    """
    loaded = load_model(config)
    check_same_digest(f"teacher {config.name!r}", loaded.digest, digest)
    return loaded


def check_same_digest(what: str, here: str, on_driver: str) -> None:
    """Refuse what a worker loaded or made where it is not what the driver did.

    Args:
        what: it is, for the message.
        here, on_driver: digest of it.

    Raises:
        OtherModelError: they differ.
    """
    if here != on_driver:
        raise OtherModelError(
            f"{what} differs between the driver (digest {on_driver[:8]}) and a worker ({here[:8]}): was it changed "
            "in the meantime, or does that machine have another one?"
        )
