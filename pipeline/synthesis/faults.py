"""Distinguish errors of a machine from errors of a shard."""

import os
import re
import traceback

import ray
import torch

from pipeline.errors import PipelineError

# PyTorch raises AcceleratorError for errors of CUDA's runtime, and RuntimeError for those of its libraries and drivers.
_DEVICE_ERROR = re.compile(
    r"\b(CUDA|HIP|cuDNN|cuBLAS|cuSPARSE|cuSOLVER|cuFFT|NCCL|NVML)( driver| internal)? error\b"
    r"|\b(CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CUFFT)_STATUS_|device-side assert"
    r"|no (CUDA|HIP)-capable device|No (CUDA|HIP) GPUs are available|no NVIDIA driver",
    re.IGNORECASE,
)

# Errors whose message is enough; for others the last few frames of the traceback are kept too.
_SAY_ALL = (PipelineError, OSError, MemoryError)
_NUM_FRAMES = 4


class DeviceError(PipelineError):
    """A worker's GPU cannot be used."""


def is_device_error(error: BaseException) -> bool:
    """Return whether an error means that a GPU, its driver or the CUDA context failed; running out of memory does not.

    After such an error the CUDA context is unusable: every later call in the process fails.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError | DeviceError):
        return True
    return isinstance(error, RuntimeError) and _DEVICE_ERROR.search(str(error)) is not None


def check_gpu(wanted: str) -> None:
    """Raise if the machine has a GPU that PyTorch cannot use, instead of computing on the CPU.

    Otherwise a broken GPU would look like no GPU, and its shards would silently take a hundred times as long.

    Args:
        wanted: setting `pool.device`: `auto`, `cpu` or `cuda`.

    Raises:
        DeviceError: PyTorch sees no GPU, although it is built for one and the machine has one.
    """
    on_cpu = wanted == "cpu" or torch.version.cuda is None or not os.path.exists("/dev/nvidiactl")
    if ray.get_runtime_context().get_accelerator_ids().get("GPU") and not on_cpu and not torch.cuda.is_available():
        raise DeviceError("no CUDA-capable device is usable, although the machine has one: is its driver working?")


def last_frames(error: Exception) -> str:
    """Return the last frames of an error's traceback; empty if its message is enough."""
    if isinstance(error, _SAY_ALL) or is_device_error(error):
        return ""
    return "".join(traceback.format_exception(error, limit=-_NUM_FRAMES, chain=False))
