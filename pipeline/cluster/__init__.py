"""The Ray cluster that a job belongs to: join it, watch it, and turn its errors into this project's."""

from pipeline.cluster.autoscaler import is_fixed_size
from pipeline.cluster.connection import (
    check_answer,
    check_cluster,
    connect,
    kill_own_processes,
    own_signals,
    start_here,
)
from pipeline.cluster.errors import free_resources, own_errors

__all__ = [
    "check_answer",
    "check_cluster",
    "connect",
    "free_resources",
    "is_fixed_size",
    "kill_own_processes",
    "own_errors",
    "own_signals",
    "start_here",
]
