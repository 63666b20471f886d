"""Processes that work on a cluster: actors of a synthesis, and Ray Train's workers."""

from pipeline.workers.config import FLAT_NAMES, DeviceChoice, WorkersConfig
from pipeline.workers.process import (
    check_same_digest,
    device_name,
    load_again,
    pick_device,
    threads,
    with_absolute_paths,
)

__all__ = [
    "FLAT_NAMES",
    "DeviceChoice",
    "WorkersConfig",
    "check_same_digest",
    "device_name",
    "load_again",
    "pick_device",
    "threads",
    "with_absolute_paths",
]
