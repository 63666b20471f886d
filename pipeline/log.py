"""Messages for people: one logger, `sparse_inversion`, to standard error. Only results go to standard output.

Jobs set its level with `--quiet` and `-v`. A program that uses this project as a library can set the level or remove
the handler, as with any logger.
"""

import logging
import sys

logger = logging.getLogger("sparse_inversion")

_PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: "}


class _Handler(logging.Handler):
    """Write to the current standard error, which jobs and tests may replace."""

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
    # Otherwise a program with logging of its own would print each line twice.
    logger.propagate = False


_set_up()
