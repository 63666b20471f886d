"""Calibrate a teacher on images and write it quantized: `python -m jobs.calibrate --config FILE.yaml`."""

import sys
from collections.abc import Sequence

from jobs.entry import run_job
from pipeline.quantization import CalibrationConfig, calibrate


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("calibrate", CalibrationConfig, calibrate, argv)


if __name__ == "__main__":
    sys.exit(main())
