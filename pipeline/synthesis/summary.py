"""Summary of a synthesis, from what its workers reported and its files."""

from collections.abc import Iterable
from typing import Any

from pipeline import storage
from pipeline.dataset import store
from pipeline.dataset.undone import list_undone
from pipeline.dataset.work import work_done
from pipeline.outputs.owners import NOT_SHARED
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.indexing import RunningIndex
from pipeline.synthesis.plan import SynthesisPlan
from pipeline.synthesis.tally import Tally


def summarize(plan: SynthesisPlan, tally: Tally, index: RunningIndex, progress: store.Progress) -> dict[str, Any]:
    """Return a summary of the run, as plain data: what was done and what was not.

    Args:
        plan: plan of the run.
        tally: what the workers reported.
        index: index of the dataset.
        progress: what the output holds now.
    """
    pool = plan.config.pool
    lost = reasons_of_lost(progress.missing, tally, index, plan.config.output)
    failed = {shard_id: record["reason"] for shard_id, record in progress.failed.items()} | lost
    return {
        "complete": progress.complete,
        "output": plan.config.output,
        "digest": plan.digest,
        "num_shards": len(plan.shards),
        "num_done": len(progress.parts),
        **list_undone(
            failed=[{"shard_id": shard_id, "reason": failed[shard_id]} for shard_id in sorted(failed)],
            missing=[shard_id for shard_id in progress.missing if shard_id not in lost],
        ),
        "num_images": plan.shards.num_images,
        "num_images_made": tally.num_images,
        "num_done_by_another_run": tally.num_by_another,
        "num_retried": tally.num_retried,
        "class_loss": tally.class_loss,
        "teacher_confidence": tally.teacher_confidence,
        **_steps_taken(plan.config, tally),
        **_machine_work(plan.config, tally),
        **work_done(tally.seconds, gpus_per_actor=pool.gpus_per_actor, price_per_hour=pool.price_per_hour),
        "workers": dict(tally.made_by),
    }


def shards_left(config: SynthesisConfig) -> str:
    """Say how much of a dataset is done when its run was stopped, and how to continue.

    Raises:
        DatasetError: the output cannot be read.
    """
    if config.dry_run or not storage.exists(store.manifest_uri(config.output)):
        return "nothing was made, run it again"
    manifest = store.read_manifest(config.output)
    done = len(store.list_parts(config.output, manifest["digest"]))
    return f"{done} of {manifest['num_shards']} shards done, run it again for the rest"


def reasons_of_lost(missing: Iterable[int], tally: Tally, index: RunningIndex, output: str) -> dict[int, str]:
    """Return shard id → why there is neither part nor record: the worker's error, or that the part is elsewhere."""
    reasons = {shard_id: tally.failures[shard_id] for shard_id in missing if shard_id in tally.failures}
    makers = {} if not tally.made_by else index.makers()
    for shard_id in missing:
        if shard_id not in reasons and makers.get(shard_id) in tally.made_by:
            reasons[shard_id] = f"{makers[shard_id]} wrote it, and it is not in {output!r}: {NOT_SHARED}"
    return reasons


def _steps_taken(config: SynthesisConfig, tally: Tally) -> dict[str, Any]:
    """Return the steps that images took, and how many ran the whole schedule; nothing if none may end early."""
    taken = tally.steps
    if config.inversion.adaptive_end is None or not taken:
        return {}
    mean = sum(steps * times for steps, times in taken.items()) / taken.total()
    return {"num_steps": {"mean": mean, "most": max(taken), "ran_to_the_end": taken[config.inversion.num_steps]}}


def _machine_work(config: SynthesisConfig, tally: Tally) -> dict[str, Any]:
    """Return the seconds of compiling over all workers, if asked for, and the largest peak memory of a worker."""
    compiled = {"compile_s": round(tally.compile_s, 2)} if config.inversion.compile else {}
    return compiled | ({"peak_bytes": tally.peak_bytes} if tally.peak_bytes else {})
