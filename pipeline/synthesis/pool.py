"""Resources of the actor pool."""

from collections.abc import Sequence
from typing import Any

import ray.data

from pipeline.cluster import is_fixed_size
from pipeline.errors import ConfigError
from pipeline.synthesis.capacity import needs, reachable_seats, seats
from pipeline.synthesis.config import PoolConfig, SynthesisConfig
from pipeline.synthesis.devices import Device

# The driver handles some 70 turns a second, and a worker has two at a time. With turns this long for each worker it is
# not in their way, and short shards share a turn; a shard that takes longer has one for itself.
_TURN_S_PER_WORKER = 0.06
_MIN_TURN_S, _MOST_TURN_S = 2.0, 20.0


def pool_options(
    config: SynthesisConfig,
    num_shards: int,
    *,
    without: Sequence[Device] = (),
    overlapping: bool = False,
) -> dict[str, Any]:
    """Return Ray's arguments for the pool: `compute`, and what each actor needs. The cluster must be joined.

    The pool asks for all its first actors at once, so that an autoscaler brings their nodes together. It does not ask
    for more than there can be: on a full cluster an actor that waits takes the place of one that restarts.

    Args:
        config: settings of the dataset.
        num_shards: number of shards to do.
        without: devices that must get no actor. The GPUs among them must be held, see `holders`.
        overlapping: whether an actor with a GPU is called for two shards at once, and keeps its calls apart itself.

    Raises:
        ConfigError: a cluster of fixed size is too small for the pool.
    """
    pool, actor = config.pool, needs(config.pool)
    max_size = min(pool.max_size, num_shards)
    min_size = min(pool.min_size, max_size)
    room = seats(pool, without=without)
    if without:
        min_size = max(1, min(min_size, room))
    if room < min_size and is_fixed_size():
        without_gpus = (
            "; without GPUs, set pool.device to cpu" if actor.on_gpu and not ray.cluster_resources().get("GPU") else ""
        )
        raise ConfigError(
            f"pool.min_size {min_size} with {actor} per actor: the cluster has room for {room}{without_gpus}"
        )
    overlaps = overlapping and actor.on_gpu
    reachable = reachable_seats(pool, room)
    compute = ray.data.ActorPoolStrategy(
        min_size=min_size,
        max_size=max_size,
        initial_size=int(max(min_size, min(pool.initial_size or max_size, max_size, reachable))),
        # With 1 the pool would never grow.
        max_tasks_in_flight_per_actor=2,
        **({"enable_true_multi_threading": True, "max_concurrent_calls_per_actor": 2} if overlaps else {}),
    )
    avoided = sorted({device.node_id for device in without if device.gpu is None})
    return {"compute": compute, **actor.options(avoided)}


def turn_s(pool: PoolConfig, num_workers: int) -> float:
    """Return for how many seconds a worker makes shards before it reports them.

    Args:
        pool: settings of the pool.
        num_workers: largest number of workers that the pool can have.
    """
    wanted = min(_MOST_TURN_S, max(_MIN_TURN_S, _TURN_S_PER_WORKER * num_workers))
    # Ray Data sees no progress within a turn.
    return wanted if pool.no_progress_timeout_s == -1 else min(wanted, pool.no_progress_timeout_s / 4)
