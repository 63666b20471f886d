"""The machine, the libraries and the command that a figure was measured with."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch

from pipeline.credentials import without_credentials

# The instruction sets that decide how fast products are, as Linux names them: on x86-64, then on ARM.
_INSTRUCTION_SETS = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "sve", "bf16", "i8mm"),
)


def circumstances(module: str, device: torch.device) -> dict[str, Any]:
    """Return command, commit, versions and hardware of this process, as plain data.

    Args:
        module: name of the module that `python -m` ran.
        device: device that did the work.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": without_credentials(f"python -m {module} {' '.join(sys.argv[1:])}".strip()),
        "commit": commit.stdout.strip() or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        # What the processor has, and what torch uses of it: `ATEN_CPU_CAPABILITY` may hold it to less.
        "instruction_sets": instruction_sets(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _processor() -> str:
    """Return the processor's name where Linux gives it."""
    names = _cpuinfo("model name")
    return names[0] if names else platform.machine()


def instruction_sets() -> list[str] | None:
    """Return which instruction sets for fast products this processor has; None where that cannot be read."""
    lists = _cpuinfo("flags") or _cpuinfo("Features")
    return [name for name in _INSTRUCTION_SETS if name in lists[0].split()] if lists else None


def described(names: Sequence[str] | None) -> str:
    """Return instruction sets in words, for a page of figures."""
    return "instruction sets not recorded" if names is None else f"with {', '.join(names)}"


def made_by(facts: Mapping[str, Any]) -> str:
    """Return the first words of a page of figures: command, commit, hardware and versions of `circumstances`."""
    return (
        f"Made by `{facts['command']}` at commit {facts['commit']} on {facts['cores']} × {facts['device']}, "
        f"{described(facts['instruction_sets'])}, torch {facts['torch']}, timm {facts['timm']}"
    )


def _cpuinfo(field: str) -> list[str]:
    """Return the values of a field of `/proc/cpuinfo`, one for each processor; none on another system."""
    try:
        with open("/proc/cpuinfo") as lines:
            parts = [line.partition(":") for line in lines]
    except OSError:
        return []
    return [value.strip() for name, _, value in parts if name.strip() == field]
