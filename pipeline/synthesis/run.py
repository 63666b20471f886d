"""Making the dataset: check everything, submit what is missing, tell how it goes, say what is left undone."""

import sys
import time
from collections import Counter
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data

from pipeline import storage
from pipeline.cluster import connect, free_resources, own_errors
from pipeline.dataset import store
from pipeline.errors import ConfigError, IncompleteError
from pipeline.outputs import check_shared
from pipeline.synthesis.estimate import Probe, probe, shard_seconds
from pipeline.synthesis.plan import Plan, count_images, prepare
from pipeline.synthesis.preview import write_contact_sheet
from pipeline.synthesis.progress import ProgressReport
from pipeline.synthesis.shards import SynthesisConfig
from pipeline.synthesis.writer import PartWriter

# Shards in a row that could not be written before the run stops making more.
_MAX_UNWRITTEN = 5


def synthesize(config: SynthesisConfig) -> dict[str, Any]:
    """Write the dataset, or what is missing of it.

    Progress goes to standard error. A shard that fails is recorded under `failed/`, and the others go on.

    Returns:
        A summary as plain data; `complete` tells whether every shard is done, `failed` and `missing` what is not.

    Raises:
        ConfigError, ModelError, CheckpointError: impossible settings or teacher.
        DatasetError: the output cannot be written, or holds another dataset.
        IncompleteError: the actors could not start, or nothing moved any more.
    """
    started = time.monotonic()
    check_shared(config.output)
    plan = prepare(config)
    if plan.notice is not None:
        _tell(plan.notice)
    if config.dry_run:
        return _dry_run(plan)
    storage.check_writable(plan.config.output)
    outcomes: list[dict[str, Any]] = []
    if plan.to_do:
        try:
            with own_errors():
                fixed = connect()
                options = pool_options(plan.config, len(plan.to_do), fixed=fixed)
                _begin(plan)
                outcomes = _invert_missing(plan, options)
        except IncompleteError as error:
            done = len(store.done_shards(plan.config.output, plan.digest))
            left = f"{done} of {len(plan.shards)} shards are done, run it again for the rest"
            raise IncompleteError(f"{left}: {error}") from error
    with storage.writing_to(plan.config.output):
        return _finish(plan, outcomes, time.monotonic() - started)


def pool_options(config: SynthesisConfig, num_shards: int, *, fixed: bool) -> dict[str, Any]:
    """Ray's arguments for the pool: `compute`, and what each actor takes. The cluster must have been joined.

    Args:
        config: of the dataset.
        num_shards: to be done.
        fixed: no node can join the cluster any more.

    Raises:
        ConfigError: a fixed cluster is too small for the pool.
    """
    pool = config.pool
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    use_gpu = pool.device == "cuda" or (pool.device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes))
    # A GPU actor takes no CPU: on a small node it would wait for the tasks that hold them, and they for it.
    resources = {"num_gpus": 1, "num_cpus": 0} if use_gpu else {"num_cpus": pool.cpus_per_actor}
    max_size = min(pool.max_size, num_shards)
    min_size = min(pool.min_size, max_size)
    room = sum(_room(node, resources) for node in nodes)
    if fixed and room < min_size:
        needed = "1 GPU" if use_gpu else f"{pool.cpus_per_actor} CPUs (pool.cpus_per_actor)"
        raise ConfigError(f"pool.min_size {min_size} with {needed} an actor: this machine has room for {room}")
    compute = ray.data.ActorPoolStrategy(
        min_size=min_size,
        max_size=max_size,
        # With 1 the pool never grows.
        max_tasks_in_flight_per_actor=2,
    )
    return {"compute": compute, **resources}


def _room(node: dict[str, float], resources: dict[str, int]) -> int:
    """Actors that a node can hold."""
    names = {"num_gpus": "GPU", "num_cpus": "CPU"}
    return min(int(node.get(names[name], 0) // amount) for name, amount in resources.items() if amount)


def _begin(plan: Plan) -> None:
    """Make the output ready; from here on it is this dataset's."""
    output = plan.config.output
    with storage.writing_to(output):
        store.clear_temporaries(output)
        if not storage.exists(store.manifest_uri(output)):
            store.write_manifest(output, plan.manifest)
        for shard_id in set(store.failed_shards(output)) & set(plan.progress.done):
            store.remove_failure(output, shard_id)


def _invert_missing(plan: Plan, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the pool over what is missing; a row a shard.

    Raises:
        IncompleteError: shard after shard could not be written.
    """
    rows = ray.data.from_items(plan.to_do, override_num_blocks=len(plan.to_do)).map_batches(
        PartWriter, fn_constructor_args=(plan.config, plan.digest), batch_size=1, **options
    )
    rows.context.wait_for_min_actors_s = plan.config.pool.start_timeout_s
    rows.context.execution_no_progress_timeout_s = plan.config.pool.no_progress_timeout_s
    report = ProgressReport(
        num_shards=len(plan.shards),
        num_done=len(plan.progress.done),
        num_images=count_images(plan.to_do),
        stream=sys.stderr,
        why_silent=free_resources,
        whole_run=None if plan.config.inversion.adaptive_end is None else plan.config.inversion.num_steps,
    )
    outcomes: list[dict[str, Any]] = []
    with report:
        # Without prefetching: a shard is told when it is done, and not when the next one is.
        for finished in rows.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for outcome in cast(pa.Table, finished).to_pylist():
                outcomes.append(outcome)
                report.shard_finished(outcome)
            check_written(outcomes)
    return outcomes


def check_written(outcomes: list[dict[str, Any]]) -> None:
    """What cannot be written need not be made: stop when nothing but that happens.

    Raises:
        IncompleteError: the last few shards all were made and could not be written.
    """
    last = outcomes[-_MAX_UNWRITTEN:]
    if len(last) == _MAX_UNWRITTEN and all(outcome["unwritten"] for outcome in last):
        raise IncompleteError(f"{len(last)} shards in a row could not be written: {last[-1]['reason']}")


def _finish(plan: Plan, outcomes: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Contact sheet and summary, from what the files say now."""
    output = plan.config.output
    progress = store.read_progress(output, len(plan.shards), plan.digest)
    told = told_reasons(outcomes, output)
    missing = [shard_id for shard_id in progress.missing if shard_id not in told]
    failed = {shard_id: record["reason"] for shard_id, record in progress.failed.items()}
    failed |= {shard_id: reason for shard_id, reason in told.items() if shard_id in progress.missing}
    made = [row for row in outcomes if not row["error"]]
    num_made = sum(row["num_images"] for row in made)
    store.clear_temporaries(output)
    return {
        "complete": progress.complete,
        "output": plan.config.output,
        "digest": plan.digest,
        "num_shards": len(plan.shards),
        "num_done": len(progress.done),
        "failed": [{"shard_id": shard_id, "reason": failed[shard_id]} for shard_id in sorted(failed)],
        "missing": missing,
        "num_images": count_images(plan.shards),
        "num_images_made": num_made,
        "seconds": round(seconds, 2),
        "class_loss": _mean_over_images(made, "class_loss"),
        "teacher_confidence": _mean_over_images(made, "teacher_confidence"),
        **_steps_taken(plan.config, made),
        **_machine_work(plan.config, made),
        "workers": dict(Counter(row["worker"] for row in made)),
        "contact_sheet": write_contact_sheet(
            output, plan.digest, plan.shards, set(progress.done), plan.manifest["class_names"]
        ),
    }


def told_reasons(outcomes: list[dict[str, Any]], output: str) -> dict[int, str]:
    """Shard id → why it has no part, if it has none: as its actor told, or because that wrote it somewhere else."""
    return {
        row["shard_id"]: row["reason"]
        if row["error"]
        else f"{row['worker']} wrote it, and it is not in {output!r}: another folder of that name on that machine?"
        for row in outcomes
    }


def _steps_taken(config: SynthesisConfig, made: list[dict[str, Any]]) -> dict[str, Any]:
    """Where images may end early: how many steps they took, and how many ran to the end of the schedule."""
    taken = [steps for row in made for steps in row["num_steps"]]
    if config.inversion.adaptive_end is None or not taken:
        return {}
    to_the_end = sum(steps == config.inversion.num_steps for steps in taken)
    return {"num_steps": {"mean": sum(taken) / len(taken), "most": max(taken), "ran_to_the_end": to_the_end}}


def _machine_work(config: SynthesisConfig, made: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of compiling over all actors, where asked for; the most memory of a GPU, where there was one."""
    peak_bytes = max((row["peak_bytes"] for row in made), default=0)
    compiled = {"compile_s": round(sum(row["compile_s"] for row in made), 2)} if config.inversion.compile else {}
    return compiled | ({"peak_bytes": peak_bytes} if peak_bytes else {})


def _mean_over_images(rows: list[dict[str, Any]], name: str) -> float | None:
    images = sum(row["num_images"] for row in rows)
    return sum(row[name] * row["num_images"] for row in rows) / images if images else None


def _dry_run(plan: Plan) -> dict[str, Any]:
    """Print the plan, time a few steps where the actors would run, and write nothing."""
    config, images = plan.config, count_images(plan.to_do)
    summary: dict[str, Any] = {
        "dry_run": True,
        "output": config.output,
        "num_shards": len(plan.shards),
        "num_done": len(plan.progress.done),
        "num_images": count_images(plan.shards),
        "num_images_to_make": images,
    }
    _tell(f"{len(plan.shards)} shards, {summary['num_images']} images in {config.output}")
    _tell(f"{len(plan.progress.done)} shards are done already, {images} images are to be made")
    if not images:
        return {**summary, "estimated_hours": 0.0}
    largest = max(plan.to_do, key=lambda shard: len(shard["labels"]))["labels"]
    with own_errors():
        fixed = connect()
        options = pool_options(config, len(plan.to_do), fixed=fixed)
        actors = options.pop("compute").max_size
        trial = ray.remote(**options)(probe).remote(config, largest, _sharing(options, actors))
        # The steps themselves, and compiling them, may take as long as a shard may.
        patience_s = config.pool.no_progress_timeout_s
        limit_s = None if patience_s == -1 else config.pool.start_timeout_s + patience_s
        probed: Probe = ray.get(trial, timeout=limit_s)
    step_seconds = probed.step_seconds
    schedule = config.inversion.phases(plan.num_patches)
    hours = shard_seconds(schedule, step_seconds) * images / len(largest) / 3600
    for (num_steps, num_patches), seconds in zip(schedule, step_seconds, strict=True):
        _tell(f"{num_steps} steps of {num_patches} patches, {seconds:.4f} s each for {len(largest)} images")
    if config.inversion.adaptive_end is not None:
        _tell("images may end early (inversion.adaptive_end): what follows is the most that it takes")
    unit = "GPU-hours" if options.get("num_gpus") else "core-hours"
    cost = hours if options.get("num_gpus") else hours * config.pool.cpus_per_actor
    _tell(f"about {cost:.3g} {unit}, {hours / actors:.3g} hours with {actors} actors")
    key = f"estimated_{unit.lower().replace('-', '_')}"
    summary |= {"seconds_per_step": step_seconds, key: cost, "actors": actors, "estimated_hours": hours / actors}
    return summary | _memory(config, len(largest), probed)


def _sharing(resources: dict[str, int], actors: int) -> int:
    """Actors at most that share a machine's memory; one where no machine is there yet."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, min(actors, max((_room(node, resources) for node in nodes), default=1)))


def _memory(config: SynthesisConfig, num_images: int, probed: Probe) -> dict[str, Any]:
    """Tell what a shard takes of an actor's memory, and what would fit."""
    gib = 2**30
    predicted = "not predicted for this family"
    if probed.predicted_bytes is not None:
        predicted = f"{probed.predicted_bytes / gib:.3g} GiB predicted"
    _tell(
        f"a step of {num_images} images takes {probed.peak_bytes / gib:.3g} GiB at most, measured; {predicted}; "
        f"an actor has {probed.device_bytes / gib:.3g} GiB"
    )
    largest = probed.largest_batch * config.inversion.images_per_run
    _tell(f"shard_size up to {largest} fits in one forward; a larger one needs micro_batch {probed.largest_batch}")
    return {
        "peak_bytes": probed.peak_bytes,
        "predicted_peak_bytes": probed.predicted_bytes,
        "device_bytes": probed.device_bytes,
        "largest_shard_size": largest,
        "largest_micro_batch": probed.largest_batch,
    }


def _tell(line: str) -> None:
    print(f"plan: {line}", file=sys.stderr, flush=True)
