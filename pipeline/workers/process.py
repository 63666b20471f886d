"""Set up a process that works on a cluster: an actor of a synthesis, or one of Ray Train's workers."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from pipeline import storage
from pipeline.errors import ConfigError, OtherModelError
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.workers.config import DeviceChoice

C = TypeVar("C")


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
        wanted: value of the setting.
        setting: dotted name of the setting, for the message.

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
        config: settings of the teacher, with absolute local paths.
        digest: SHA-256 of the weights that the driver loaded.

    Raises:
        OtherModelError: the weights are others.
        PipelineError: as `load_model`.
    """
    loaded = load_model(config)
    check_same_digest(f"teacher {config.name!r}", loaded.digest, digest)
    return loaded


def check_same_digest(what: str, here: str, on_driver: str) -> None:
    """Refuse something that a worker loaded or made if it differs from what the driver has.

    Args:
        what: what was loaded or made, for the message.
        here, on_driver: its digest in this process, and on the driver.

    Raises:
        OtherModelError: the digests differ.
    """
    if here != on_driver:
        raise OtherModelError(
            f"{what} differs between the driver (digest {on_driver[:8]}) and a worker ({here[:8]}): was it changed "
            "in the meantime, or does that machine have another one?"
        )
