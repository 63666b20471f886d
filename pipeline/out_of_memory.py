"""Errors of memory that ran out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import ConfigError, one_line

# c10/core/impl/alloc_cpu.cpp
_CPU_REFUSED = "DefaultCPUAllocator: can't allocate memory"


@contextmanager
def as_out_of_memory() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` where a CPU's memory ran out, as PyTorch does for GPUs; also a decorator.

    PyTorch raises a bare RuntimeError if the system refuses memory. Where the system promises more than it has, as
    Linux may, the process is killed instead, and nothing is raised.

    Raises:
        torch.OutOfMemoryError: memory ran out, on whatever device.
    """
    try:
        yield
    except RuntimeError as error:
        if _CPU_REFUSED not in str(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


@contextmanager
def naming_batch_size(setting: str, size: int) -> Iterator[None]:
    """Say which setting to lower where memory runs out.

    Args:
        setting: name of the setting that decides how many images are read together.
        size: value of that setting.

    Raises:
        ConfigError: memory ran out, and would on another try too.
    """
    try:
        with as_out_of_memory():
            yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{setting} is {size}, and memory ran out: lower it ({one_line(error)})") from error
