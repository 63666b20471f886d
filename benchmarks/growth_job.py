"""The training of `benchmarks.growth`: it looks for room for more workers each `GROWTH_LOOK_S` seconds."""

import os
import sys

from jobs.distill import main
from pipeline.distillation import workers

if __name__ == "__main__":
    workers._GROW_AT_MOST_EVERY_S = float(os.environ["GROWTH_LOOK_S"])
    sys.exit(main())
