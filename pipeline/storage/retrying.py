"""Try again what failed because of the storage."""

import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import PipelineError
from pipeline.transient import is_refusal

T = TypeVar("T")

# Seconds before each further attempt: object stores throttle, and networks fail for a moment.
RETRY_DELAYS_S = (0.5, 2.0, 8.0)


def with_retries(work: Callable[[], T]) -> T:
    """Read or write, and try again a few times, because the trouble may pass.

    Raises:
        OSError: it kept failing, or storage refused, which is not tried again.
        PipelineError: the work raised it; it is tried again only if it is transient.
    """
    for delay_s in RETRY_DELAYS_S:
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
