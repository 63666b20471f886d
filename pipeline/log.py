"""Messages for people: one logger, `sparse_inversion`, to standard error. Only results go to standard output.

Jobs set its level with `--quiet` and `-v`. A program that uses this project as a library can set the level or remove
the handler, as with any logger.

What is printed holds no credentials and no control characters: names of classes and files come from strangers, and a
terminal would obey them.
"""

import contextlib
import logging
import sys
import traceback
import unicodedata
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from pipeline.credentials import without_credentials

logger = logging.getLogger("sparse_inversion")

# Control characters, lone surrogates, separators of lines and paragraphs.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
# Marks that turn the direction of the text after them.
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: "}


class _Handler(logging.Handler):
    """Write to the current standard error, which jobs and tests may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        # Without it `print` would take standard output, which is for results.
        if sys.stderr is None:
            return
        # A terminal or `| head` that has gone away must not end hours of work.
        with contextlib.suppress(OSError, ValueError):
            print(self.format(record), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return _PREFIXES.get(record.levelno, "") + one_printed_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return printed_lines(super().formatException(ei))


def announce(notices: Iterable[str]) -> None:
    """Print notices for the user on standard error, one per line."""
    for notice in notices:
        logger.info(f"note: {notice}")


def one_printed_line(text: str) -> str:
    """Return a message as it is printed: without credentials, and with control characters escaped as Python does."""
    return "".join(_escaped(character) for character in without_credentials(text))


def printed_lines(text: str) -> str:
    """Return a traceback as it is printed, line by line as `one_printed_line`."""
    return "\n".join(map(one_printed_line, text.split("\n")))


def _escaped(character: str) -> str:
    unprintable = unicodedata.category(character) in _UNPRINTABLE or character in _TURNING
    return character.encode("unicode_escape").decode() if unprintable and character != "\t" else character


def print_safely() -> None:
    """Print what this process does not expect as its own messages: tracebacks that end it, and lines of other loggers.

    For jobs; a program that uses this project as a library decides itself.
    """
    sys.excepthook = _print_traceback
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter("%(message)s"))


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(printed_lines("".join(traceback.format_exception(kind, error, trace)).rstrip("\n")), file=sys.stderr)


def _set_up() -> None:
    handler = _Handler()
    handler.setFormatter(_Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Otherwise a program with logging of its own would print each line twice.
    logger.propagate = False


_set_up()
