"""Run a synthesis: check, make what is missing, summarize."""

import random
import time
from typing import Any

from pipeline import storage
from pipeline.cluster import check_cluster, connect, own_errors
from pipeline.dataset import store
from pipeline.dataset.own_card import write_card
from pipeline.errors import IncompleteError
from pipeline.outputs import check_place
from pipeline.precision import announce_dtype
from pipeline.runs import Claim, claim
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.dry_run import dry_run
from pipeline.synthesis.passes import invert_missing
from pipeline.synthesis.plan import SynthesisPlan, plan_synthesis
from pipeline.synthesis.pool import pool_options
from pipeline.synthesis.progress import report_plan
from pipeline.synthesis.report import write_pictures
from pipeline.synthesis.room import describe_choice
from pipeline.synthesis.summary import summarize


def synthesize(config: SynthesisConfig) -> dict[str, Any]:
    """Write the dataset, or what is missing of it.

    Progress goes to standard error. A shard that fails is recorded under `failed/`, and the others go on.

    Returns:
        A summary as plain data; `complete` says whether every shard is done, `failed` and `missing` list the others.

    Raises:
        ConfigError, ModelError, CheckpointError: settings or teacher are impossible.
        DatasetError: the output cannot be written, or holds another dataset.
        IncompleteError: the actors could not start, or the run made no more progress.
    """
    started = time.monotonic()
    check_place(config.output, shared=True)
    check_cluster()
    plan = plan_synthesis(config)
    if plan.notice is not None:
        report_plan(plan.notice)
    if config.dry_run:
        return dry_run(plan)
    storage.check_writable(plan.config.output)
    outcomes: list[dict[str, Any]] = []
    if plan.to_do:
        try:
            with own_errors():
                fixed_size = connect()
                # The cluster may be too small, which must come out before anything is written.
                options = pool_options(plan.config, len(plan.to_do), fixed_size=fixed_size)
                report_plan(describe_choice(plan.config.pool))
                announce_dtype(plan.config.inversion.dtype, on_gpu=bool(options.get("num_gpus")), on_nodes=True)
                claimed = _begin(plan)
                # If another run with these settings is at work, a random order keeps the two at different shards.
                to_do = plan.to_do if claimed.new else random.sample(plan.to_do, len(plan.to_do))
                outcomes = invert_missing(plan, to_do, fixed_size=fixed_size)
        except IncompleteError as error:
            done = len(store.done_shards(plan.config.output, plan.digest))
            left = f"{done} of {len(plan.shards)} shards are done, run it again for the rest"
            raise IncompleteError(f"{left}: {error}") from error
    with storage.writing_to(plan.config.output):
        return _finish(plan, outcomes, time.monotonic() - started)


def _begin(plan: SynthesisPlan) -> Claim:
    """Prepare the output, and claim it for this dataset.

    Raises:
        DatasetError: another run claimed it in the meantime.
    """
    output = plan.config.output
    with storage.writing_to(output):
        store.clear_temporaries(output)
        claimed = claim(output, "synthesize", plan.manifest)
        write_card(output, claimed.document)
        for shard_id in set(store.failed_shards(output)) & set(plan.progress.done):
            store.remove_failure(output, shard_id)
    return claimed


def _finish(plan: SynthesisPlan, outcomes: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Delete temporary files, summarize, and write what people look at."""
    output = plan.config.output
    store.clear_temporaries(output)
    progress = store.read_progress(output, len(plan.shards), plan.digest)
    summary = {**summarize(plan, outcomes, progress), "seconds": round(seconds, 2)}
    return {**summary, **write_pictures(plan, summary, progress.done)}
