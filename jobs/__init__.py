"""Entry points for `python -m jobs.NAME`, `sparse-inversion NAME` and `ray job submit`."""

import sys
from pathlib import Path

from jobs.stopping import stop_quietly_while_importing

# Only if this process is a job, not if tests or a user's own program import one.
if sys.argv[0] == "-m" or Path(sys.argv[0]).name == "sparse-inversion":
    stop_quietly_while_importing()
