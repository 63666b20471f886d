"""Calibrate a teacher on images and write it quantized: `python -m jobs.calibrate --config FILE.yaml`."""

import sys
from collections.abc import Sequence

from jobs.entry import run_job
from pipeline.outputs.owners import qat_checkpoints
from pipeline.quantization import CalibrationConfig, calibrate


def _left(config: CalibrationConfig) -> str:
    if config.qat is not None and qat_checkpoints(config.output):
        return "run it again: it calibrates anew, and its training goes on from the last checkpoint"
    return "run it again: a calibration starts anew"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("calibrate", CalibrationConfig, calibrate, argv, left=_left)


if __name__ == "__main__":
    sys.exit(main())
