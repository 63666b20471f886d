"""Records of shards: attempts at one that is not made yet, and the process that works on one. Imports no torch."""

from dataclasses import dataclass, field

from pipeline.synthesis.devices import Device
from pipeline.synthesis.outcome import Outcome

# A lost node takes innocent shards along, so it counts for less than a worker that dies alone.
_LOST_NODES_PER_ATTEMPT = 3


@dataclass(frozen=True)
class Refusal:
    """Why a shard is given up: the name of an error, and a line."""

    error: str
    reason: str


@dataclass
class ShardRecord:
    """Attempts at a shard that is not made yet.

    Attributes:
        num_begun: number of attempts that were begun.
        history: how each attempt ended, one line each.
        unreported: lines of the history that the driver does not know yet.
        lost_nodes: number of attempts that ended because their node was lost.
        deaths: number of attempts in which the process died while its node stayed.
    """

    num_begun: int = 0
    history: list[str] = field(default_factory=list)
    unreported: list[str] = field(default_factory=list)
    lost_nodes: int = 0
    deaths: int = 0

    def add_death(self, line: str, *, with_node: bool) -> None:
        """Add that the process that worked on it died, alone or with its node."""
        self.lost_nodes += with_node
        self.deaths += not with_node
        self.history.append(line)
        self.unreported.append(line)

    def refusal(self, max_attempts: int) -> Refusal | None:
        """Return why the shard is given up; None if it may be tried again."""
        lost, own = self.lost_nodes, len(self.history) - self.lost_nodes
        if own < max_attempts and lost < _LOST_NODES_PER_ATTEMPT * max_attempts:
            return None
        # Whichever attempt was the last: a device that fails says nothing of the shard, a process that dies does.
        cause = " (killed for using too much memory, or crashed?)" if self.deaths else ""
        last = "; ".join(self.history[-max_attempts:])
        error = "WorkerDied" if self.deaths or self.lost_nodes else "DeviceError"
        return Refusal(error, f"given up after {len(self.history)} attempts{cause}: {last}")


@dataclass(frozen=True)
class Running:
    """A shard that a worker's process works on, in which turn, and whether it has inverted it and only writes it."""

    worker: str
    device: Device
    name: str
    turn: int
    inverted: bool = False


@dataclass(frozen=True)
class Begun:
    """The answer to a worker that takes a shard.

    Attributes:
        shard_id: number of the shard.
        history: how earlier attempts ended, in lines that were not reported to the driver yet.
        refusal: why the shard is given up; None if the worker may do it.
        done: whether this run has made the shard already, and its worker died before Ray heard of it.
        attempt: number of this attempt at the shard, counted from 1. For a shard that is done, the attempt that made
            it.
        outcome: what the worker that made the shard reported, if the shard is done and that is still known.
    """

    shard_id: int
    history: list[str] = field(default_factory=list)
    refusal: Refusal | None = None
    done: bool = False
    attempt: int = 0
    outcome: Outcome | None = None
