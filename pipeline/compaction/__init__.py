"""Merge the many parts of a synthetic dataset into fewer, larger files."""

from pipeline.compaction.config import CompactionConfig
from pipeline.compaction.run import compact, files_left

__all__ = ["CompactionConfig", "compact", "files_left"]
