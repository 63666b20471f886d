"""Make a training's images in the background. Internal: started by `pipeline.synthesis.background`."""

import os
import signal
import sys
from threading import Thread

from jobs.synthesize import main


def _end_with_parent() -> None:
    """Stop this process as Ctrl-C would, once the process that started it is gone: its standard input then ends."""
    # Not through sys.stdin, whose lock a thread may not hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main())
