"""Images of any dataset as a model's inputs, for calibration, distillation and evaluation."""

from pipeline.inputs.checking import check_inputs, check_planned, find_labeled, other_teacher
from pipeline.inputs.reading import COLUMNS, conversion, read_inputs, read_units

__all__ = [
    "COLUMNS",
    "check_inputs",
    "check_planned",
    "conversion",
    "find_labeled",
    "other_teacher",
    "read_inputs",
    "read_units",
]
