"""What a figure was measured on."""

import os
import platform
import subprocess
import sys
from typing import Any

import timm
import torch


def circumstances(module: str, device: torch.device) -> dict[str, Any]:
    """Command, commit, versions and hardware of this process, as plain data.

    Args:
        module: what `python -m` ran.
        device: that did the work.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": f"python -m {module} {' '.join(sys.argv[1:])}".strip(),
        "commit": commit.stdout.strip() or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
