"""The exit code of a synthesis beside a training. Imports no torch, because a small Ray actor imports this module."""


class ExitCode:
    """Hold the exit code of a synthesis, for processes that wait for its parts; runs as a Ray actor."""

    def __init__(self) -> None:
        self._exit_code: int | None = None

    def set(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def get(self) -> int | None:
        """Return the exit code; None while the synthesis runs."""
        return self._exit_code
