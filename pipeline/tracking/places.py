"""Places that a tracker reports to."""

from collections.abc import Mapping
from typing import Literal, Protocol

# Name of the threads that report, by which messages of libraries are known.
THREAD = "tracking"
# Beginning of the names of a result's figures.
RESULT = "result/"
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Place(Protocol):
    """Takes the figures of one run. Its methods are called on one thread, `begin` first."""

    #: Name for messages, with the address.
    name: str
    #: Errors of a place that does not take figures, as opposed to faults of this project.
    errors: tuple[type[Exception], ...]

    def begin(self, settings: Mapping[str, str]) -> None: ...

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def end(self, status: Status, values: Mapping[str, float]) -> None: ...
