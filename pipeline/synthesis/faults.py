"""Tell errors of a machine from errors of a shard."""

import os
import re

import ray
import torch

from pipeline.errors import PipelineError

# PyTorch raises AcceleratorError for what CUDA's runtime reports, and a RuntimeError for its libraries and drivers.
_DEVICE_ERROR = re.compile(
    r"\b(CUDA|HIP|cuDNN|cuBLAS|cuSPARSE|cuSOLVER|cuFFT|NCCL|NVML)( driver| internal)? error\b"
    r"|\b(CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CUFFT)_STATUS_|device-side assert"
    r"|no (CUDA|HIP)-capable device|No (CUDA|HIP) GPUs are available|no NVIDIA driver",
    re.IGNORECASE,
)


class DeviceError(PipelineError):
    """A worker's GPU cannot be used."""


def is_device_error(error: BaseException) -> bool:
    """Whether an error says that a GPU, its driver or the process's context on it failed; memory that ran out is none.

    After such an error a CUDA context is of no use any more: every later call in that process fails.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError | DeviceError):
        return True
    return isinstance(error, RuntimeError) and _DEVICE_ERROR.search(str(error)) is not None


def check_gpu(wanted: str) -> None:
    """Refuse to compute on the CPU where Ray gave this process a GPU, and its driver does not let PyTorch use it.

    Without it a broken GPU would look like none, and its shards would take a hundred times as long in silence.

    Args:
        wanted: the pool's `device`.

    Raises:
        DeviceError: PyTorch sees no GPU, though it is made for one and the machine has one.
    """
    on_cpu = wanted == "cpu" or torch.version.cuda is None or not os.path.exists("/dev/nvidiactl")
    if ray.get_runtime_context().get_accelerator_ids().get("GPU") and not on_cpu and not torch.cuda.is_available():
        raise DeviceError("no CUDA-capable device is usable, though the machine has one: is its driver in order?")
