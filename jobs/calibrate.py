"""Calibrate a teacher on images and write it quantized: `python -m jobs.calibrate --config FILE.yaml`."""

import sys
from collections.abc import Sequence
from typing import Any

from jobs.ending import score_line, table_lines
from jobs.entry import run_job
from pipeline.artifacts.formats import FormatName, format_named
from pipeline.outputs.owners import qat_checkpoints
from pipeline.quantization import CalibrationConfig, calibrate
from pipeline.quantization.report import short_table


def _left(config: CalibrationConfig) -> str:
    if config.qat is not None and qat_checkpoints(config.output):
        return "run it again: it calibrates anew, and its training goes on from the last checkpoint"
    return "run it again: a calibration starts anew"


def _ending(config: CalibrationConfig, report: dict[str, Any]) -> list[str]:
    """Return the figures of all models, and how to score one: the ONNX file, which is the one to deploy."""
    lines = [f"calibrate: times are {report['latency']}", *table_lines(short_table(report))]
    made: dict[FormatName, str] = {}
    for row in report["artifacts"]:
        made.setdefault(row["artifact"], row["uri"])
    kind = "onnx" if "onnx" in made else next(iter(made), None)
    return lines if kind is None else [*lines, *score_line(config, made[kind], compiled=format_named(kind).runs_code)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    return run_job("calibrate", CalibrationConfig, calibrate, argv, left=_left, ending=_ending)


if __name__ == "__main__":
    sys.exit(main())
