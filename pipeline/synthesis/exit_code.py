"""How a synthesis beside a training ended. Imports no torch, because a small Ray actor imports this module."""


class ExitCode:
    """How a synthesis ended, for those who wait for its parts; an actor."""

    def __init__(self) -> None:
        self._exit_code: int | None = None

    def set(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def get(self) -> int | None:
        """Return the exit code; None while the synthesis runs."""
        return self._exit_code
