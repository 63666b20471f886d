"""Faults of `benchmarks.chaos`: their kinds, and the draw of what strikes where. Imports neither Ray nor torch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "actor_killed",
    "shard_kills",
    "constructor_fails",
    "gpu_error",
    "gpu_broken",
    "out_of_memory",
    "node_lost",
    "node_replaced",
    "node_drained",
    "second_run",
    "driver_killed",
    "driver_terminated",
    "driver_interrupted",
    "store_fails",
    "store_slow",
    "store_full",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
STORE_KINDS: tuple[Kind, ...] = ("store_fails", "store_slow", "store_full")
DRIVER_KINDS: tuple[Kind, ...] = ("driver_killed", "driver_terminated", "driver_interrupted")
NODE_KINDS: tuple[Kind, ...] = ("node_lost", "node_replaced", "node_drained")
# Faults that a process outside the cluster causes, once a worker has begun the shard.
FROM_OUTSIDE = (*STORE_KINDS, *DRIVER_KINDS, *NODE_KINDS, "second_run")
# Each takes a GPU away until the episode ends, and one must be left; a third run would find none.
_ONCE: tuple[Kind, ...] = ("gpu_broken", "node_lost", "second_run")
# How often a shard kills its worker before it lets one live; the run gives it up at the third time.
DEATHS = 2

StorageKind = Literal["s3", "local"]
_PLACES: tuple[StorageKind, ...] = get_args(StorageKind)


@dataclass(frozen=True)
class Fault:
    """A fault that strikes when a worker begins a shard.

    Attributes:
        kind: what happens.
        shard_id: the shard that is being made then.
    """

    kind: Kind
    shard_id: int

    @property
    def names(self) -> list[str]:
        """Names of the orders that bring it about, one for each time that it strikes."""
        times = DEATHS if self.kind == "shard_kills" else 1
        return [f"{self.shard_id:05d}-{self.kind}-{time}" for time in range(times)]


@dataclass(frozen=True)
class Episode:
    """A dataset that is made under faults.

    Attributes:
        place: where it is written to.
        faults: by shard.
    """

    place: StorageKind
    faults: tuple[Fault, ...]


def draw(num_faults: int, seed: int, *, num_shards: int, per_episode: int) -> list[Episode]:
    """Draw faults of all kinds, each about as often as any other.

    Args:
        num_faults: in all episodes together.
        seed: decides everything.
        num_shards: of each dataset; more than `per_episode`.
        per_episode: faults of an episode, at most one a shard.
    """
    draws = random.Random(seed)
    deck: list[Kind] = []
    episodes: list[Episode] = []
    left = num_faults
    while left:
        place = _PLACES[len(episodes) % len(_PLACES)]
        kinds: list[Kind] = []
        while len(kinds) < min(per_episode, left):
            if not _allowed(deck, kinds, place):
                deck += draws.sample(KINDS, len(KINDS))
            kind = _allowed(deck, kinds, place)[0]
            deck.remove(kind)
            kinds.append(kind)
        draws.shuffle(kinds)
        shards = sorted(draws.sample(range(num_shards), len(kinds)))
        episodes.append(Episode(place, tuple(map(Fault, kinds, shards))))
        left -= len(kinds)
    return episodes


def _allowed(deck: Sequence[Kind], kinds: Sequence[Kind], place: StorageKind) -> list[Kind]:
    """Return the kinds of the deck that an episode can have beside those that it has."""
    return [
        kind for kind in deck if (place == "s3" or kind not in STORE_KINDS) and not (kind in _ONCE and kind in kinds)
    ]
