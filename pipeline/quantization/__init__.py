"""Data-free quantization: calibration on Ray, torchao PT2E, `.pt2`, ONNX QDQ and AOTInductor artifacts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pipeline.artifacts  # noqa: F401  (before torchao is imported, whose warning it leaves out)

if TYPE_CHECKING:
    from pipeline.quantization.bit_widths import BitWidths
    from pipeline.quantization.config import CalibrationConfig
    from pipeline.quantization.ranges import range_error
    from pipeline.quantization.run import calibrate

__all__ = ["BitWidths", "CalibrationConfig", "calibrate", "range_error"]

_HOMES = {"BitWidths": "bit_widths", "CalibrationConfig": "config", "calibrate": "run", "range_error": "ranges"}


def __getattr__(name: str) -> Any:
    # Ray tasks that choose images import this package too, and should not have to import torchao and Ray Train.
    if name in _HOMES:
        return getattr(import_module(f"pipeline.quantization.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
