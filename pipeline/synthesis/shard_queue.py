"""The queue of shards of a pass, and the shards that finished in each worker's latest turns.

Ray Data hands out turns, and a turn names no shard: whoever has one takes the shard that is next. So a shard that a
worker gave back is soon taken by another, and short shards share a turn. Imports no torch.
"""

from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from pipeline.synthesis.devices import Device
from pipeline.synthesis.outcome import Outcome

# Turns remembered per worker. Ray Data has at most two per worker in flight.
_KEPT_TURNS = 4


@dataclass
class _Turn:
    """A turn of a worker.

    Attributes:
        name: name of the process that has the turn.
        node_id: id of the node that the process runs on.
        ended: shard that ended in this turn → outcome, if it was made. The driver gets these when the turn ends.
    """

    name: str
    node_id: str
    ended: dict[int, Outcome | None] = field(default_factory=dict)


class Turns:
    """The turns of one pass.

    Args:
        shard_ids: shards to do, in order.
        numbers: numbers of the turns. Turns of an earlier pass have smaller numbers.
    """

    def __init__(self, shard_ids: Iterable[int], numbers: range) -> None:
        self._ahead = deque(shard_ids)
        # Shards that were given back, in order. A dict serves as an ordered set, so its values mean nothing.
        self._back: dict[int, None] = {}
        self._failed_on: dict[int, set[Device]] = {}
        # Outcomes of shards that were made, and given back only to be reported again.
        self._outcomes: dict[int, Outcome] = {}
        self._first, self.num_left = numbers.start, len(numbers)
        self._by_worker: dict[str, dict[int, _Turn]] = {}

    @property
    def any_back(self) -> bool:
        """Whether a shard was given back that nobody has taken since."""
        return bool(self._back)

    @property
    def any_begun(self) -> bool:
        """Return whether a worker had a turn in this pass."""
        return bool(self._by_worker)

    def is_past(self, number: int) -> bool:
        """Return whether a turn belongs to an earlier pass, whose outcomes nobody reads any more."""
        return number < self._first

    def enter(self, worker: str, device: Device, name: str, number: int) -> None:
        """Begin a turn or go on with it; what ended in it in an earlier process is given back, to be reported again.

        Args:
            worker: id of the actor. Ray repeats a turn on the same actor if it died before Ray heard that the turn was
                over.
            device: device that the worker computes on.
            name: name of the actor's process.
            number: number of the turn.
        """
        turns = self._by_worker.setdefault(worker, {})
        if number not in turns:
            turns[number] = _Turn(name, device.node_id)
            self.num_left -= 1
            for old in list(turns)[:-_KEPT_TURNS]:
                del turns[old]
        turn = turns[number]
        if turn.name != name:
            self._give_back_ended(turn)
            turn.name, turn.node_id = name, device.node_id

    def lose_nodes(self, alive: Container[str]) -> None:
        """Give back what ended in turns of nodes that are lost: their workers may never repeat them.

        Args:
            alive: ids of the nodes that are not lost.
        """
        for turns in self._by_worker.values():
            for turn in turns.values():
                if turn.node_id not in alive:
                    self._give_back_ended(turn)

    def _give_back_ended(self, turn: _Turn) -> None:
        """Let others report shards whose outcomes may be lost; the driver ignores one that it has already."""
        self._back.update(dict.fromkeys(turn.ended))
        self._outcomes.update({shard_id: made for shard_id, made in turn.ended.items() if made is not None})
        turn.ended = {}

    def pop_outcome(self, shard_id: int) -> Outcome | None:
        """Return the outcome of a shard that was made and given back to be reported again, if it is known."""
        return self._outcomes.pop(shard_id, None)

    def take(self, device: Device, *, any_device: bool = False) -> int | None:
        """Return the next shard, first those that were given back; None if there is none for this device.

        Args:
            device: device that will do the shard.
            any_device: whether the shard may be one on which this device failed.
        """
        for shard_id in self._back:
            if any_device or device not in self._failed_on.get(shard_id, ()):
                del self._back[shard_id]
                return shard_id
        return self._ahead.popleft() if self._ahead else None

    def give_back(self, shard_id: int, failed_on: Device | None = None) -> None:
        """Return a shard to the queue, ahead of all shards that nobody has taken yet.

        Args:
            shard_id: number of the shard.
            failed_on: device that failed on the shard and leaves it to others in this pass; None if none did.
        """
        self._back[shard_id] = None
        if failed_on is not None:
            self._failed_on.setdefault(shard_id, set()).add(failed_on)

    def begin(self, shard_id: int) -> None:
        """Note that a shard is being done, so that nobody else takes it."""
        self._back.pop(shard_id, None)

    def end(self, worker: str, number: int, shard_id: int, made: Outcome | None = None) -> None:
        """Note that a shard ended in a turn, and the outcome of one that was made."""
        turn = self._by_worker.get(worker, {}).get(number)
        if turn is not None:
            turn.ended[shard_id] = made
