"""Make a training's images in the background. Internal: started by `pipeline.synthesis.background`."""

import os
import signal
import sys
from threading import Thread

from jobs.entry import run_job
from pipeline.synthesis import SynthesisConfig, shards_left, synthesize


def _end_with_parent() -> None:
    """Stop this process as Ctrl-C would, once the process that started it is gone: its standard input then ends."""
    # Not through sys.stdin, whose lock a thread may not hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    Thread(target=_end_with_parent, daemon=True).start()
    # Without the ending of jobs.synthesize: the training that it is made for goes on.
    sys.exit(run_job("synthesize", SynthesisConfig, synthesize, left=shards_left))
