"""Synthesis of datasets: shards, the actors that invert them, and the run."""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy_exports

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
# Ray starts processes for single modules of this package, and torch costs each of them 6 seconds and 0.8 GB.
__getattr__ = lazy_exports(
    __name__,
    {
        "Inverter": "actor",
        "PoolConfig": "config",
        "Shard": "shards",
        "SynthesisConfig": "config",
        "build_inverter": "stage",
        "located": "config",
        "plan_shards": "shards",
        "shards_left": "summary",
        "synthesize": "run",
    },
)
