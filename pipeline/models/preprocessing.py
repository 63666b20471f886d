"""Check normalization, resizing and cropping, from any source."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]
# Settings of how real images are resized and cropped.
PREPROCESSING = ("interpolation", "crop_pct", "crop_mode")
# Above 1 timm resizes images to less than the model's size and pads them: its largest VOLO models state 1.15.
_LARGEST_CROP = 2.0
_CHOICES = {"interpolation": get_args(Interpolation), "crop_mode": get_args(CropMode)}


def describe_normalization_fault(values: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a `mean` or `std`; None if both are possible.

    Both are of pixels in [0, 1]. A model that reads [-1, 1] has 0.5 and 0.5, one that reads [0, 255] has 0 and 1/255,
    and one that reads [0, 1] has 0 and 1: no standard deviation is above 1.

    Args:
        values: `mean`, `std` or both, one number per channel.
    """
    for name, value in values.items():
        numbers = list(value) if isinstance(value, list | tuple) else []
        if not numbers or not all(_is_number(number) for number in numbers):
            return f"{name} must be numbers, one per channel, not {value!r:.80}"
        low = "must be of" if name == "mean" else "must be above 0 and at most 1, as of"
        if not all(0 <= number <= 1 for number in numbers) or (name == "std" and 0 in numbers):
            hint = ": divide by 255 if it is of pixels in [0, 255]" if max(numbers) > 1 else ""
            return f"{name} {low} pixels in [0, 1], not {numbers}{hint}"
    return None


def describe_crop_fault(values: Mapping[str, Any]) -> str | None:
    """Say what is wrong with an `interpolation`, `crop_pct` or `crop_mode`; None if all are possible."""
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            return f"{name} must be one of {', '.join(choices)}, not {values[name]!r:.80}"
    share = values.get("crop_pct", 1.0)
    if not _is_number(share) or not 0 < share <= _LARGEST_CROP:
        return f"crop_pct must be above 0 and at most {_LARGEST_CROP:g}, a share and no percentage, not {share!r:.80}"
    return None


def _is_number(value: Any) -> bool:
    # NaN is not equal to itself, and infinity is out of every range here.
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
