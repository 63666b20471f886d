"""How long the work will take and how much memory, from a few steps of each phase of the schedule."""

import dataclasses
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.inversion import Inversion, InversionConfig, Teacher
from pipeline.inversion.memory import LiveBytes, StepBytes, is_predictable, largest_batch, predict, weight_bytes
from pipeline.synthesis.actor import Inverter
from pipeline.synthesis.identity import image_seed
from pipeline.synthesis.shards import SynthesisConfig

# Of each phase: the first steps after a stop meet new shapes (a CUDA graph is compiled, warmed up, recorded), the last
# ranks the patches; those between are timed.
_TIMED = 3


def _warm_up(inversion: InversionConfig) -> int:
    return 3 if inversion.compile else 1


def _phase(inversion: InversionConfig) -> int:
    return _warm_up(inversion) + _TIMED + 1


@dataclass(frozen=True)
class Probe:
    """What a few steps took. Bytes are those of one actor.

    Attributes:
        step_seconds: of one step, phase by phase.
        peak_bytes: of the first phase, where memory peaks: what CUDA's allocator gave out, on a CPU the tensors alive.
        predicted_bytes: the same from the teacher's shape; None where its family is not counted.
        device_bytes: of the GPU, or an actor's share of the machine.
        largest_batch: images that fit in one forward and backward, with a margin.
    """

    step_seconds: list[float]
    peak_bytes: int
    predicted_bytes: int | None
    device_bytes: int
    largest_batch: int


def probe(config: SynthesisConfig, labels: list[int], sharing: int) -> Probe:
    """Try a few steps of each phase on the shard of these labels. Runs where the actors will run.

    Args:
        config: of the dataset.
        labels: of the shard.
        sharing: actors on this machine that have no GPU of their own.

    Raises:
        ModelError, CheckpointError, ConfigError: as `Inverter`.
    """
    inverter = Inverter(config)
    starts = labels[:: config.inversion.images_per_run]
    short = _shortened(config.inversion)
    run = _make_run(inverter, starts, short)
    seconds = [_timed_step(run, inverter.device) for _ in range(short.iterations)]
    first_steps = range(_warm_up(short), len(seconds), _phase(short))
    peak = _peak_bytes(inverter, starts, short)
    return Probe(
        step_seconds=[statistics.median(seconds[first : first + _TIMED]) for first in first_steps],
        peak_bytes=peak,
        predicted_bytes=_predicted(inverter, short, len(starts), run.result().micro_batch),
        device_bytes=_device_bytes(inverter.device, sharing),
        largest_batch=largest_batch(
            _device_bytes(inverter.device, sharing), _one_image(inverter, short, peak, len(starts))
        ),
    )


def _make_run(inverter: Inverter, starts: list[int], inversion: InversionConfig) -> Inversion:
    return Inversion(
        inverter.ready_teacher,
        torch.tensor(starts, device=inverter.device),
        inversion,
        seeds=[image_seed(inverter.digest, 0, str(row)) for row in range(len(starts))],
        feature_prior=inverter.feature_prior,
        disagreement=inverter.disagreement,
    )


def _peak_bytes(inverter: Inverter, starts: list[int], inversion: InversionConfig) -> int:
    """At the end of a run on a GPU; on a CPU that of two more steps, for nobody has counted, and uncompiled."""
    if inverter.device.type == "cuda":
        return torch.cuda.max_memory_allocated(inverter.device)
    run = _make_run(inverter, starts, dataclasses.replace(inversion, compile=False))
    with LiveBytes([run.images], without=run.teacher.parameters()) as live:
        run.step()
    return live.peak + weight_bytes(inverter.teacher, inversion.dtype)


def _predicted(inverter: Inverter, inversion: InversionConfig, batch: int, micro_batch: int) -> int | None:
    teacher = _counted_teacher(inverter, inversion)
    return None if teacher is None else predict(teacher, inversion, batch=batch, micro_batch=micro_batch).total


def _counted_teacher(inverter: Inverter, inversion: InversionConfig) -> Teacher | None:
    """The teacher, where all that a step takes is predicted: no other networks, nothing kept of its blocks."""
    teacher = inverter.teacher
    others = inversion.feature_prior or inversion.adversarial or inversion.patch_similarity
    if others or not isinstance(teacher, Teacher) or not is_predictable(teacher):
        return None
    return None if teacher.model.attn_pool is not None else teacher


def _one_image(inverter: Inverter, inversion: InversionConfig, peak: int, batch: int) -> StepBytes:
    """The step of one image, as predicted, or an equal share of what was measured."""
    teacher = _counted_teacher(inverter, inversion)
    if teacher is not None:
        return predict(teacher, inversion, batch=1)
    weights = weight_bytes(inverter.teacher, inversion.dtype)
    return StepBytes(weights=weights, pixels=0, work=max(1, (peak - weights) // batch))


def _device_bytes(device: torch.device, sharing: int) -> int:
    """Of the GPU; of the machine or container, shared."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit = Path("/sys/fs/cgroup/memory.max")
    told = limit.read_text().strip() if limit.exists() else "max"
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(physical, int(told) if told != "max" else physical) // sharing


def _shortened(inversion: InversionConfig) -> InversionConfig:
    """The same phases, a few steps each, and no image that ends early."""
    phase = _phase(inversion)
    if inversion.rebirth is not None:
        return dataclasses.replace(inversion, iterations=phase * inversion.rebirth, adaptive_end=None)
    num_stops = len(inversion.stop_steps)
    return dataclasses.replace(
        inversion,
        iterations=phase * (num_stops + 1),
        stop_steps=[phase * (stop + 1) for stop in range(num_stops)],
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
