"""Making the dataset: check everything, submit what is missing, tell how it goes, say what is left undone."""

import random
import sys
import time
from typing import Any, cast

import pyarrow as pa
import ray.data

from pipeline import storage
from pipeline.cluster import check_cluster, connect, free_resources, own_errors
from pipeline.dataset import store
from pipeline.dataset.card import write_card
from pipeline.errors import IncompleteError
from pipeline.outputs import check_place
from pipeline.runs import Claim, claim
from pipeline.synthesis.dry_run import dry_run
from pipeline.synthesis.plan import Plan, count_images, prepare
from pipeline.synthesis.pool import pool_options
from pipeline.synthesis.preview import write_contact_sheet
from pipeline.synthesis.progress import ProgressReport, tell
from pipeline.synthesis.shards import SynthesisConfig
from pipeline.synthesis.summary import summarize
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
    check_place(config.output, shared=True)
    check_cluster()
    plan = prepare(config)
    if plan.notice is not None:
        tell(plan.notice)
    if config.dry_run:
        return dry_run(plan)
    storage.check_writable(plan.config.output)
    outcomes: list[dict[str, Any]] = []
    if plan.to_do:
        try:
            with own_errors():
                fixed = connect()
                options = pool_options(plan.config, len(plan.to_do), fixed=fixed)
                claimed = _begin(plan)
                # Beside another run of these settings each takes shards that the other is not at.
                to_do = plan.to_do if claimed.new else random.sample(plan.to_do, len(plan.to_do))
                outcomes = _invert_missing(plan, to_do, options)
        except IncompleteError as error:
            done = len(store.done_shards(plan.config.output, plan.digest))
            left = f"{done} of {len(plan.shards)} shards are done, run it again for the rest"
            raise IncompleteError(f"{left}: {error}") from error
    with storage.writing_to(plan.config.output):
        return _finish(plan, outcomes, time.monotonic() - started)


def _begin(plan: Plan) -> Claim:
    """Make the output ready; from here on it is this dataset's.

    Raises:
        DatasetError: meanwhile it became another's.
    """
    output = plan.config.output
    with storage.writing_to(output):
        store.clear_temporaries(output)
        claimed = claim(output, "synthesize", plan.manifest)
        write_card(output, claimed.document)
        for shard_id in set(store.failed_shards(output)) & set(plan.progress.done):
            store.remove_failure(output, shard_id)
    return claimed


def _invert_missing(plan: Plan, to_do: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the pool over what is missing; a row a shard.

    Raises:
        IncompleteError: shard after shard could not be written.
    """
    rows = ray.data.from_items(to_do, override_num_blocks=len(to_do)).map_batches(
        PartWriter,
        fn_constructor_args=(plan.config, plan.digest, plan.manifest["schema_version"]),
        batch_size=1,
        **options,
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
    """Leave no temporary file, draw the contact sheet, and sum up."""
    output = plan.config.output
    store.clear_temporaries(output)
    progress = store.read_progress(output, len(plan.shards), plan.digest)
    sheet = write_contact_sheet(output, plan.digest, plan.shards, set(progress.done), plan.manifest["class_names"])
    return {**summarize(plan, outcomes, progress), "seconds": round(seconds, 2), "contact_sheet": sheet}
