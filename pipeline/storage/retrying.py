"""Try again what failed because of the storage."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.errors import PipelineError
from pipeline.transient import is_refusal

T = TypeVar("T")

# Seconds before each further attempt: object stores throttle, and networks fail for a moment.
RETRY_DELAYS_S = (0.5, 2.0, 8.0)


def with_retries(work: Callable[[], T], *, delays_s: Sequence[float] | None = None) -> T:
    """Read or write, and try again a few times, because the trouble may pass.

    Args:
        work: function that reads or writes.
        delays_s: seconds before each further attempt, `RETRY_DELAYS_S` by default.

    Raises:
        OSError: it kept failing, or storage refused, which is not tried again.
        PipelineError: the work raised it; it is tried again only if it is transient.
    """
    for delay_s in RETRY_DELAYS_S if delays_s is None else delays_s:
        try:
            return work()
        except OSError as error:
            if is_refusal(error):
                raise
            time.sleep(delay_s)
        except PipelineError as error:
            if not error.is_transient:
                raise
            time.sleep(delay_s)
    return work()


def look_again(is_there: Callable[[], bool], delays_s: Sequence[float]) -> bool:
    """Return whether a file is there, looking again where it is not: some stores show a new one only after a moment.

    Args:
        is_there: function that looks for the file.
        delays_s: seconds before each look, the first one too.
    """
    for delay_s in delays_s:
        time.sleep(delay_s)
        if is_there():
            return True
    return False
