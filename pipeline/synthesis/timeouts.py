"""How long a dataset waits for the actors of its pool."""

import time
from typing import Any

import ray
import ray.exceptions
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.synthesis.config import PoolConfig

_TIMEOUT = "sparse_inversion.start_timeout_s"


def set_timeouts(context: DataContext, pool: PoolConfig) -> None:
    """Let a dataset begin with `min_size` actors, and end with an error if it gets fewer in time, or stalls.

    Ray Data's own setting waits for every actor that the pool starts with. Where a spot market gives fewer, it would
    leave the few actors idle, and then give up.

    Args:
        context: context of the dataset to be run on the pool.
        pool: settings of the pool.
    """
    context.wait_for_min_actors_s = -1
    context.execution_no_progress_timeout_s = pool.no_progress_timeout_s
    context.set_config(_TIMEOUT, pool.start_timeout_s)
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, WaitForActors]


class WaitForActors(ExecutionCallback):
    """Waits until each pool of a dataset has its least size."""

    def before_execution_starts(self, executor: Any) -> None:
        """Wait for actors, which Ray Data has asked for.

        Raises:
            GetTimeoutError: a pool is still too small when the time is over.
            RayError: an actor could not start.
        """
        timeout_s = executor._data_context.get_config(_TIMEOUT)
        deadline = time.monotonic() + timeout_s
        for pool in (pool for operator in executor._topology for pool in operator.get_autoscaling_actor_pools()):
            wanted, starting = pool.min_size(), pool.get_pending_actor_refs()
            ready, _ = ray.wait(starting, num_returns=wanted, timeout=max(0.0, deadline - time.monotonic()))
            ray.get(ready)
            if len(ready) < wanted:
                raise ray.exceptions.GetTimeoutError(
                    f"{len(ready)} of {wanted} actors (pool.min_size) started in {timeout_s} s (pool.start_timeout_s)"
                )
