"""How long the work will take, from a few steps of each phase of the schedule."""

import dataclasses
import statistics
import time

import torch

from pipeline.inversion import Inversion, InversionConfig
from pipeline.synthesis.actor import Inverter
from pipeline.synthesis.identity import image_seed
from pipeline.synthesis.shards import SynthesisConfig

# Of each phase: the first steps after a stop meet new shapes, the last ranks the patches; those between are timed.
_WARM_UP, _TIMED = 1, 3
_PHASE = _WARM_UP + _TIMED + 1


def time_steps(config: SynthesisConfig, labels: list[int]) -> list[float]:
    """Seconds of one step of each phase, on the shard of these labels. Runs where the actors will run.

    Raises:
        ModelError, CheckpointError, ConfigError: as `Inverter`.
    """
    inverter = Inverter(config)
    starts = labels[:: config.inversion.images_per_run]
    short = _shortened(config.inversion)
    run = Inversion(
        inverter.teacher,
        torch.tensor(starts, device=inverter.device),
        short,
        seeds=[image_seed(inverter.digest, 0, str(row)) for row in range(len(starts))],
        feature_prior=inverter.feature_prior,
        disagreement=inverter.disagreement,
    )
    seconds = [_timed_step(run, inverter.device) for _ in range(short.iterations)]
    starts = range(_WARM_UP, len(seconds), _PHASE)
    return [statistics.median(seconds[start : start + _TIMED]) for start in starts]


def _shortened(inversion: InversionConfig) -> InversionConfig:
    """The same phases, a few steps each, and no image that ends early."""
    if inversion.rebirth is not None:
        return dataclasses.replace(inversion, iterations=_PHASE * inversion.rebirth, adaptive_end=None)
    num_stops = len(inversion.stop_steps)
    return dataclasses.replace(
        inversion,
        iterations=_PHASE * (num_stops + 1),
        stop_steps=[_PHASE * (stop + 1) for stop in range(num_stops)],
        stop_formula=None,
        adaptive_end=None,
    )


def _timed_step(run: Inversion, device: torch.device) -> float:
    started = time.perf_counter()
    run.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def shard_seconds(schedule: list[tuple[int, int]], step_seconds: list[float]) -> float:
    """Seconds that one shard takes an actor."""
    return sum(num_steps * seconds for (num_steps, _), seconds in zip(schedule, step_seconds, strict=True))
