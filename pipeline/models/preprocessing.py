"""Check resizing and cropping, from any source."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pipeline.checks import is_number

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]
# Settings of how real images are resized and cropped.
PREPROCESSING = ("interpolation", "crop_pct", "crop_mode")
# Above 1 timm resizes images to less than the model's size and pads them: its largest VOLO models state 1.15.
_LARGEST_CROP = 2.0
_CHOICES = {"interpolation": get_args(Interpolation), "crop_mode": get_args(CropMode)}


def describe_crop_fault(values: Mapping[str, Any]) -> str | None:
    """Say what is wrong with an `interpolation`, `crop_pct` or `crop_mode`; None if all are possible."""
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            return f"{name} must be one of {', '.join(choices)}, not {values[name]!r:.80}"
    share = values.get("crop_pct", 1.0)
    if not is_number(share) or not 0 < share <= _LARGEST_CROP:
        return f"crop_pct must be above 0 and at most {_LARGEST_CROP:g}, a share and no percentage, not {share!r:.80}"
    return None
