"""Synthesis of datasets: shards, the actors that invert them, and the run."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.synthesis.actor import Inverter
    from pipeline.synthesis.config import PoolConfig, SynthesisConfig, located
    from pipeline.synthesis.run import synthesize
    from pipeline.synthesis.shards import Shard, plan_shards
    from pipeline.synthesis.stage import build_inverter
    from pipeline.synthesis.summary import shards_left

__all__ = [
    "Inverter",
    "PoolConfig",
    "Shard",
    "SynthesisConfig",
    "build_inverter",
    "located",
    "plan_shards",
    "shards_left",
    "synthesize",
]
_MODULES = {
    "Inverter": "actor",
    "PoolConfig": "config",
    "Shard": "shards",
    "SynthesisConfig": "config",
    "build_inverter": "stage",
    "located": "config",
    "plan_shards": "shards",
    "shards_left": "summary",
    "synthesize": "run",
}


def __getattr__(name: str) -> Any:
    # Ray starts processes for single modules of this package, and torch costs each of them seconds and 0.9 GB.
    if name in _MODULES:
        return getattr(importlib.import_module(f"pipeline.synthesis.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
