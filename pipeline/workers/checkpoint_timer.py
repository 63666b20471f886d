"""When to save a checkpoint: every so many minutes, and when the node is about to be taken."""

import time
from collections.abc import Callable

# Asking Ray for a notice takes milliseconds, or waits for all workers of a training, so it is not done at every step.
_ASK_EVERY_S = 5.0
# Seconds between checkpoints once a notice has come. A cloud may take the node half a minute after the notice.
_SAVE_EVERY_S_ONCE_NOTICED = 10.0


class CheckpointTimer:
    """Decide when to ask for a notice, and when to save. In a training rank 0 decides.

    Args:
        every_s: seconds between two checkpoints.
        noticed: function that returns whether this node, or one of those that work together, is about to be taken. In a
            training it waits for all workers, so each of them must call it equally often. None if no node can be taken.
        clock: function that returns the time in seconds.
    """

    def __init__(
        self, every_s: float, noticed: Callable[[], bool] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_s, self._noticed, self._clock = every_s, noticed, clock
        self._last_saved = self._last_asked = clock()
        self._soon = False

    def wants_to_ask(self) -> bool:
        """Return whether it is time to ask for a notice. Rank 0 decides, and the others follow."""
        return self._noticed is not None and self._clock() - self._last_asked >= _ASK_EVERY_S

    def ask(self) -> None:
        """Ask for a notice, together with all other workers; the first one makes a checkpoint due at once."""
        assert self._noticed is not None
        if self._noticed() and not self._soon:
            self._soon, self._last_saved = True, float("-inf")
        self._last_asked = self._clock()

    def is_due(self) -> bool:
        """Return whether it is time for a checkpoint."""
        interval = min(self._every_s, _SAVE_EVERY_S_ONCE_NOTICED) if self._soon else self._every_s
        return self._clock() - self._last_saved >= interval

    def saved(self) -> None:
        """Start the interval anew: everything up to now is in a checkpoint."""
        self._last_saved = self._clock()
