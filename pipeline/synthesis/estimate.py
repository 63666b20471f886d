"""Estimate time and memory from a few steps of each phase of the schedule."""

import dataclasses
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.inversion import Inversion, InversionConfig, Teacher
from pipeline.inversion.memory import (
    LiveBytes,
    StepBytes,
    is_predictable,
    largest_batch,
    predict,
    predict_run,
    weight_bytes,
)
from pipeline.synthesis.actor import Inverter, memory_share
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.identity import image_seed

# Steps of each phase that are timed. Left out are the first steps after a stop, which have new shapes (a CUDA graph is
# compiled, warmed up and recorded), and the last, which ranks the patches.
_TIMED = 3
# Memory limit of a container, in control groups version 2 and 1.
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def _warm_up(inversion: InversionConfig) -> int:
    return 3 if inversion.compile else 1


def _phase(inversion: InversionConfig) -> int:
    return _warm_up(inversion) + _TIMED + 1


@dataclass(frozen=True)
class Probe:
    """Measured time and memory of a few steps. Bytes are those of one actor.

    Attributes:
        step_seconds: seconds that one step took, for each phase.
        peak_bytes: peak memory of the run: on a GPU of CUDA's allocator, on a CPU of the live tensors in two steps of
            each phase.
        predicted_bytes: peak memory predicted from the teacher's shape; None if that is not possible, because of the
            teacher's family, an attention pool, another network, or a loss term that reads the blocks.
        device_bytes: an actor's share of the memory of its GPU, or of the machine.
        largest_batch: number of images that fit in one forward and backward pass, with a margin.
    """

    step_seconds: list[float]
    peak_bytes: int
    predicted_bytes: int | None
    device_bytes: int
    largest_batch: int


def probe(config: SynthesisConfig, labels: list[int], actors_per_machine: int) -> Probe:
    """Run a few steps of each phase on a shard with the given labels, where the actors will run.

    Args:
        config: settings of the dataset.
        labels: classes of the shard's images.
        actors_per_machine: number of actors that share this machine's memory, if they compute on its CPUs.

    Raises:
        ModelError, CheckpointError, ConfigError: as `Inverter`.
    """
    inverter = Inverter(config)
    starts = labels[:: config.inversion.images_per_run]
    short = _shortened(config.inversion, _phase(config.inversion))
    run = _make_run(inverter, starts, short)
    seconds = [_timed_step(run, inverter.device) for _ in range(short.iterations)]
    first_steps = range(_warm_up(short), len(seconds), _phase(short))
    peak, device_bytes = _peak_bytes(inverter, starts), _device_bytes(inverter, actors_per_machine)
    return Probe(
        step_seconds=[statistics.median(seconds[first : first + _TIMED]) for first in first_steps],
        peak_bytes=peak,
        predicted_bytes=_predicted(inverter, short, len(starts)),
        device_bytes=device_bytes,
        largest_batch=largest_batch(device_bytes, _one_image(inverter, run, peak, len(starts))),
    )


def _make_run(inverter: Inverter, starts: list[int], inversion: InversionConfig) -> Inversion:
    return Inversion(
        inverter.ready_teacher,
        torch.tensor(starts, device=inverter.device),
        inversion,
        seeds=[image_seed(inverter.digest, 0, str(row)) for row in range(len(starts))],
        terms=inverter.terms,
    )


def _peak_bytes(inverter: Inverter, starts: list[int]) -> int:
    """Return the peak so far on a GPU; on a CPU, the peak of another, uncompiled run of two steps per phase."""
    if inverter.device.type == "cuda":
        return torch.cuda.max_memory_allocated(inverter.device)
    # From the second step on the optimizer's state exists, and the last step of a phase ranks the patches.
    inversion = dataclasses.replace(_shortened(inverter.config.inversion, 2), compile=False)
    run = _make_run(inverter, starts, inversion)
    with LiveBytes([run.images], without=run.teacher.parameters()) as live:
        while not run.finished:
            run.step()
    return live.peak + weight_bytes(inverter.teacher, inversion.dtype)


def _predicted(inverter: Inverter, inversion: InversionConfig, batch: int) -> int | None:
    teacher = _counted_teacher(inverter)
    return None if teacher is None else predict_run(teacher, inversion, batch=batch).total


def _counted_teacher(inverter: Inverter) -> Teacher | None:
    """Return the teacher if its steps can be predicted: without other networks or terms that read its blocks."""
    teacher = inverter.teacher
    others = any(term.network is not None or term.sees == "blocks" for term in inverter.terms)
    if others or not isinstance(teacher, Teacher) or not is_predictable(teacher):
        return None
    return None if teacher.model.attn_pool is not None else teacher


def _one_image(inverter: Inverter, run: Inversion, peak: int, batch: int) -> StepBytes:
    """Return the step of a single image: as predicted, or its share of the measured step."""
    teacher = _counted_teacher(inverter)
    if teacher is not None:
        return predict(teacher, run.config, batch=1)
    weights = weight_bytes(inverter.teacher, run.config.dtype)
    # The image and the optimizer's two moments.
    pixels = 3 * run.images[0].numel() * run.images.element_size()
    return StepBytes(weights=weights, pixels=pixels, work=max(1, (peak - weights - batch * pixels) // run.fewest))


def _device_bytes(inverter: Inverter, actors_per_machine: int) -> int:
    """Return an actor's share of the GPU's memory in bytes; without one, of the machine's or container's."""
    if inverter.device.type == "cuda":
        total = torch.cuda.get_device_properties(inverter.device).total_memory
        return memory_share(total, inverter.config.pool.actors_per_gpu)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [file.read_text().strip() for file in _MEMORY_LIMITS if file.exists()]
    return min([physical, *(int(text) for text in limits if text != "max")]) // actors_per_machine


def _shortened(inversion: InversionConfig, phase: int) -> InversionConfig:
    """Return a config with the same phases, of `phase` steps each, in which no image ends early."""
    if inversion.rebirth is not None:
        return dataclasses.replace(inversion, iterations=phase * inversion.rebirth, adaptive_end=None)
    num_stops = len(inversion.stop_steps)
    iterations = phase * (num_stops + 1)
    if (formula := inversion.stop_formula) is not None:
        # A formula rounds the numbers of patches in its own way, so it is kept and not replaced by its two lists.
        formula = dataclasses.replace(formula, by_step=phase * num_stops)
        return dataclasses.replace(
            inversion,
            iterations=iterations,
            stop_formula=formula,
            stop_steps=[],
            stop_fractions=[],
            adaptive_end=None,
        )
    stop_steps = [phase * (stop + 1) for stop in range(num_stops)]
    return dataclasses.replace(inversion, iterations=iterations, stop_steps=stop_steps, adaptive_end=None)


def _timed_step(run: Inversion, device: torch.device) -> float:
    started = time.perf_counter()
    run.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def shard_seconds(schedule: list[tuple[int, int]], step_seconds: list[float]) -> float:
    """Return the seconds that an actor takes for one shard."""
    return sum(num_steps * seconds for (num_steps, _), seconds in zip(schedule, step_seconds, strict=True))
