"""State of a run as plain data: tensors, numbers, texts and None, in dicts, lists and tuples."""

from typing import Any

import torch
from torch import Tensor


def moved(value: Any, device: torch.device) -> Any:
    """Return a copy of plain data, with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    return type(value)(moved(item, device) for item in value) if isinstance(value, list | tuple) else value
