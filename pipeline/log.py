"""Messages for people: one logger, `sparse_inversion`, to standard error. Results alone go to standard output.

Jobs set its level by `--quiet` and `-v`. A program that uses this project as a library sets it, or takes the handler
away, as with any logger.
"""

import logging
import sys

logger = logging.getLogger("sparse_inversion")

_PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: "}


class _Handler(logging.Handler):
    """Write to what standard error is at that moment: jobs and tests put other streams in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _PREFIXES.get(record.levelno, "") + super().format(record)


def _set_up() -> None:
    handler = _Handler()
    handler.setFormatter(_Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # A program that has set up logging of its own would print each line twice.
    logger.propagate = False


_set_up()
