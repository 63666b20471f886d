"""Data-free quantization: min-max calibration on Ray, torchao PT2E, `.pt2` and ONNX QDQ artefacts."""

from pipeline.quantization.calibrate import calibrate
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.ranges import range_error
from pipeline.quantization.settings import BitWidths

__all__ = ["BitWidths", "CalibrationConfig", "calibrate", "range_error"]
