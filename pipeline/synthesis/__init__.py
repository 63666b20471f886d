"""Making the whole synthetic dataset: shards, the actors that invert them, and the run that writes the parts."""

from pipeline.synthesis.actor import Inverter
from pipeline.synthesis.run import synthesize
from pipeline.synthesis.shards import PoolConfig, SynthesisConfig, located, plan_shards
from pipeline.synthesis.stage import build_inverter
from pipeline.synthesis.summary import shards_left

__all__ = [
    "Inverter",
    "PoolConfig",
    "SynthesisConfig",
    "build_inverter",
    "located",
    "plan_shards",
    "shards_left",
    "synthesize",
]
