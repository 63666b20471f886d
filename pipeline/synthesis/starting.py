"""How long a dataset waits for the actors of its pool."""

import time
from typing import Any

import ray.exceptions
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.synthesis.config import PoolConfig

_TIMEOUT = "sparse_inversion.start_timeout_s"


def set_timeouts(context: DataContext, pool: PoolConfig) -> None:
    """Let a dataset start to work with the first actors, and end with an error if it gets too few of them, or stalls.

    Ray Data could wait for actors by itself, but for all that the pool starts with. Where a spot market gives fewer, it
    would hold those it has idle and then give up.

    Args:
        context: of the dataset.
        pool: settings.
    """
    context.wait_for_min_actors_s = -1
    context.execution_no_progress_timeout_s = pool.no_progress_timeout_s
    context.set_config(_TIMEOUT, pool.start_timeout_s)
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, EnoughActors]


class EnoughActors(ExecutionCallback):
    """Ends a dataset whose pools do not reach their least size in time."""

    def before_execution_starts(self, executor: Any) -> None:
        """Start the clock."""
        self._timeout_s = executor._data_context.get_config(_TIMEOUT)
        self._started = time.monotonic()
        self._enough = False

    def on_execution_step(self, executor: Any) -> None:
        """Look at the pools.

        Raises:
            GetTimeoutError: a pool is still too small when the time is over.
        """
        if self._enough:
            return
        waiting = [pool for operator, state in executor._topology.items() for pool in _too_small(operator, state)]
        self._enough = not waiting
        # Waiting for nodes is not what the other timeout is about.
        executor._no_progress_guard._last_progress_time = time.monotonic()
        if not self._enough and time.monotonic() - self._started >= self._timeout_s:
            running, wanted = waiting[0].num_running_actors(), waiting[0].min_size()
            raise ray.exceptions.GetTimeoutError(
                f"{running} of pool.min_size {wanted} actors started in {self._timeout_s} s (pool.start_timeout_s)"
            )


def _too_small(operator: Any, state: Any) -> list[Any]:
    """Return the pools of an operator that are below their least size, and have work for another actor."""
    if operator._inputs_complete and not state.total_enqueued_input_blocks():
        return []
    return [pool for pool in operator.get_autoscaling_actor_pools() if pool.num_running_actors() < pool.min_size()]
