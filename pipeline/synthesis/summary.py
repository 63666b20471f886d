"""Summary of a synthesis, from its actors' outcomes and its files."""

from collections import Counter
from typing import Any

from pipeline import storage
from pipeline.dataset import store
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.plan import SynthesisPlan, count_images


def summarize(plan: SynthesisPlan, outcomes: list[dict[str, Any]], progress: store.Progress) -> dict[str, Any]:
    """Return what was done and what was not, as plain data.

    Args:
        plan: of the run.
        outcomes: one row per shard that an actor reported.
        progress: what the output holds now.
    """
    unrecorded = set(progress.missing)
    reasons = failure_reasons([row for row in outcomes if row["shard_id"] in unrecorded], plan.config.output)
    missing = [shard_id for shard_id in progress.missing if shard_id not in reasons]
    failed = {shard_id: record["reason"] for shard_id, record in progress.failed.items()} | reasons
    made = [row for row in outcomes if not row["error"] and not row["by_another"]]
    num_made = sum(row["num_images"] for row in made)
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
        "num_done_by_another_run": sum(row["by_another"] for row in outcomes),
        "class_loss": _mean_over_images(made, "class_loss"),
        "teacher_confidence": _mean_over_images(made, "teacher_confidence"),
        **_steps_taken(plan.config, made),
        **_machine_work(plan.config, made),
        "workers": dict(Counter(row["worker"] for row in made)),
    }


def shards_left(config: SynthesisConfig) -> str:
    """Say how much of a dataset is done when its run was stopped, and how to continue.

    Raises:
        DatasetError: the output cannot be read.
    """
    if config.dry_run or not storage.exists(store.manifest_uri(config.output)):
        return "nothing was made, run it again"
    manifest = store.read_manifest(config.output)
    done = len(store.done_shards(config.output, manifest["digest"]))
    return f"{done} of {manifest['num_shards']} shards done, run it again for the rest"


def failure_reasons(outcomes: list[dict[str, Any]], output: str) -> dict[int, str]:
    """Return shard id → why it has no part: the actor's error, or that the actor wrote it elsewhere."""
    return {
        row["shard_id"]: row["reason"]
        if row["error"]
        else f"{row['worker']} wrote it, and it is not in {output!r}: another folder of that name on that machine?"
        for row in outcomes
    }


def _steps_taken(config: SynthesisConfig, made: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the steps that images took, and how many ran the whole schedule; nothing if none may end early."""
    taken = [steps for row in made for steps in row["num_steps"]]
    if config.inversion.adaptive_end is None or not taken:
        return {}
    to_the_end = sum(steps == config.inversion.num_steps for steps in taken)
    return {"num_steps": {"mean": sum(taken) / len(taken), "most": max(taken), "ran_to_the_end": to_the_end}}


def _machine_work(config: SynthesisConfig, made: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the seconds of compiling over all actors, if asked for, and the peak memory of a GPU, if there was one."""
    peak_bytes = max((row["peak_bytes"] for row in made), default=0)
    compiled = {"compile_s": round(sum(row["compile_s"] for row in made), 2)} if config.inversion.compile else {}
    return compiled | ({"peak_bytes": peak_bytes} if peak_bytes else {})


def _mean_over_images(rows: list[dict[str, Any]], name: str) -> float | None:
    images = sum(row["num_images"] for row in rows)
    return sum(row[name] * row["num_images"] for row in rows) / images if images else None
