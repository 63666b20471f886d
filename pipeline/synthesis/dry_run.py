"""Dry run: print the plan, time a few steps where the actors would run, and write nothing."""

import math
import time
from typing import Any

import ray
import ray.actor
import ray.exceptions

from pipeline.cluster import connect, free_resources, own_errors
from pipeline.dataset.work import price
from pipeline.errors import IncompleteError
from pipeline.precision import announce_dtype
from pipeline.synthesis.capacity import actors_per_machine, describe_choice, reachable_seats, seats
from pipeline.synthesis.config import PoolConfig, SynthesisConfig
from pipeline.synthesis.estimate import Probe, probe, shard_seconds
from pipeline.synthesis.plan import SynthesisPlan
from pipeline.synthesis.pool import pool_options
from pipeline.synthesis.progress import report_plan

_REPORT_EVERY_S = 60.0


def dry_run(plan: SynthesisPlan) -> dict[str, Any]:
    """Print the plan, time a few steps where the actors would run, and write nothing."""
    config, images = plan.config, plan.shards.count_images(plan.to_do)
    summary: dict[str, Any] = {
        "dry_run": True,
        "output": config.output,
        "num_shards": len(plan.shards),
        "num_done": len(plan.progress.done),
        "num_images": plan.shards.num_images,
        "num_images_to_make": images,
    }
    report_plan(f"{len(plan.shards)} shards, {summary['num_images']} images in {config.output}")
    report_plan(f"{len(plan.progress.done)} shards are done already, {images} images are to be made")
    if not images:
        return {**summary, "estimated_hours": 0.0}
    largest = plan.shards[max(plan.to_do, key=plan.shards.size_of)]["labels"]
    probed, actors, on_gpu = _try_steps(plan, largest)
    cost = _cost(plan, probed, num_images=len(largest), actors=actors, on_gpu=on_gpu)
    return summary | cost | _memory(config, len(largest), probed)


def _try_steps(plan: SynthesisPlan, labels: list[int]) -> tuple[Probe, int, bool]:
    """Run a few steps of a shard of these classes.

    Returns:
        The measurements, the number of actors that a run may have, and whether they compute on GPUs.
    """
    config = plan.config
    with own_errors():
        connect()
        options = pool_options(config, len(plan.to_do))
        on_gpu = bool(options.get("num_gpus"))
        report_plan(describe_choice(config.pool))
        announce_dtype(config.inversion.dtype, on_gpu=on_gpu, on_nodes=True)
        actors = _most_actors(options.pop("compute").max_size, config.pool)
        # Ray's type hints say that this is a class, with another interface than an actor's handle.
        prober: Any = ray.remote(**options)(_Prober).remote()
        try:
            _wait_for_start(prober, config.pool.start_timeout_s)
            trial = prober.probe.remote(config, labels, actors_per_machine(config.pool, actors))
            return _wait_for(trial, config.pool.no_progress_timeout_s), actors, on_gpu
        finally:
            ray.kill(prober)


class _Prober:
    """Actor that tries a few steps: unlike a task, it can be asked whether it has started."""

    def probe(self, config: SynthesisConfig, labels: list[int], actors_per_machine: int) -> Probe:
        return probe(config, labels, actors_per_machine)


def _most_actors(max_size: int, pool: PoolConfig) -> int:
    """Return how many actors there can be at once; and say so, if they are fewer than the pool would take."""
    reachable = reachable_seats(pool, seats(pool))
    if reachable >= max_size:
        return max_size
    actors = max(1, int(reachable))
    report_plan(f"the cluster has room for {actors} of {max_size} actors (pool.max_size)")
    return actors


def _wait_for_start(prober: ray.actor.ActorHandle, limit_s: float) -> None:
    """Wait until an actor runs, and say once a minute what may keep it waiting."""
    ready, deadline = prober.__ray_ready__.remote(), time.monotonic() + limit_s
    while not ray.wait([ready], timeout=min(_REPORT_EVERY_S, max(0.0, deadline - time.monotonic())))[0]:
        if time.monotonic() >= deadline:
            raise IncompleteError(f"no actor started in {limit_s:g} s (pool.start_timeout_s): {free_resources()}")
        report_plan(f"waiting for an actor to start: {free_resources()}")
    ray.get(ready)


def _wait_for(trial: ray.ObjectRef, limit_s: float) -> Probe:
    """Wait for the steps. With compiling them, they may take as long as a shard may; -1 is no limit."""
    try:
        return ray.get(trial, timeout=None if limit_s == -1 else limit_s)
    except ray.exceptions.GetTimeoutError as error:
        raise IncompleteError(
            f"the steps of the dry run did not end within {limit_s:g} s (pool.no_progress_timeout_s)"
        ) from error


def _cost(plan: SynthesisPlan, probed: Probe, *, num_images: int, actors: int, on_gpu: bool) -> dict[str, Any]:
    """Report what the run takes, from the steps of a shard of so many images."""
    config, step_seconds = plan.config, probed.step_seconds
    schedule = config.inversion.phases(plan.num_patches)
    hours = shard_seconds(schedule, step_seconds) * plan.shards.count_images(plan.to_do) / num_images / 3600
    for (num_steps, num_patches), seconds in zip(schedule, step_seconds, strict=True):
        report_plan(f"{num_steps} steps of {num_patches} patches, {seconds:.4f} s each for {num_images} images")
    if config.inversion.adaptive_end is not None:
        report_plan("images may end early (inversion.adaptive_end): the following is an upper bound")
    unit, at_once = ("GPU-hours" if on_gpu else "core-hours"), actors
    cost = hours if on_gpu else hours * config.pool.cpus_per_actor
    if on_gpu and config.pool.actors_per_gpu > 1:
        report_plan("actors will share GPUs, but this measurement had one to itself: the following is an upper bound")
        at_once = math.ceil(actors / config.pool.actors_per_gpu)
    report_plan(f"about {cost:.3g} {unit}, {_duration(hours / at_once)} with {actors} actors")
    # The price is that of an actor-hour, and actors that share a GPU take longer in proportion.
    priced = price(hours * actors / at_once, config.pool.price_per_hour)
    if priced:
        report_plan(f"that costs {priced['cost']:g} at {config.pool.price_per_hour:g} an hour (pool.price_per_hour)")
    key = f"estimated_{unit.lower().replace('-', '_')}"
    return {"seconds_per_step": step_seconds, key: cost, "actors": actors, "estimated_hours": hours / at_once, **priced}


def _duration(hours: float) -> str:
    """Return hours, and below one also minutes or seconds, which people read more easily."""
    text, seconds = f"{hours:.3g} hours", 3600 * hours
    if hours >= 1:
        return text
    return f"{text} ({seconds / 60:.2g} minutes)" if seconds >= 60 else f"{text} ({seconds:.2g} s)"


def _memory(config: SynthesisConfig, num_images: int, probed: Probe) -> dict[str, Any]:
    """Report how much of an actor's memory a shard takes, and how many images would fit."""
    gib = 2**30
    predicted = "not predicted for this teacher and these losses"
    if probed.predicted_bytes is not None:
        predicted = f"{probed.predicted_bytes / gib:.3g} GiB predicted"
    report_plan(
        f"a step of {num_images} images takes {probed.peak_bytes / gib:.3g} GiB at most, measured; {predicted}; "
        f"an actor has {probed.device_bytes / gib:.3g} GiB"
    )
    largest = probed.largest_batch * config.inversion.images_per_run
    report_plan(
        f"shard_size up to {largest} fits in one forward pass; above that, set micro_batch to {probed.largest_batch}"
    )
    return {
        "peak_bytes": probed.peak_bytes,
        "predicted_peak_bytes": probed.predicted_bytes,
        "device_bytes": probed.device_bytes,
        "largest_shard_size": largest,
        "largest_micro_batch": probed.largest_batch,
    }
