"""Data-free quantization: calibration on Ray, torchao PT2E, `.pt2`, ONNX QDQ and AOTInductor artifacts."""

from typing import TYPE_CHECKING

import pipeline.artifacts  # noqa: F401  (before torchao is imported, whose warning it leaves out)
from pipeline.lazy import lazy_exports

if TYPE_CHECKING:
    from pipeline.quantization.bit_widths import BitWidths
    from pipeline.quantization.config import CalibrationConfig
    from pipeline.quantization.ranges import range_error
    from pipeline.quantization.run import calibrate

__all__ = ["BitWidths", "CalibrationConfig", "calibrate", "range_error"]

# Ray tasks that choose images import this package too, and do without torchao and Ray Train, which take two seconds.
__getattr__ = lazy_exports(
    __name__,
    {"BitWidths": "bit_widths", "CalibrationConfig": "config", "calibrate": "run", "range_error": "ranges"},
)
