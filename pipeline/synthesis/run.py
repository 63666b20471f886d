"""Run a synthesis: check, make what is missing, summarize."""

import random
import time
from typing import Any

from pipeline import storage
from pipeline.cluster import check_cluster, connect, own_errors
from pipeline.config import to_dict
from pipeline.dataset import store
from pipeline.dataset.own_card import write_card
from pipeline.errors import DatasetError, IncompleteError, one_line
from pipeline.log import logger
from pipeline.outputs import Claim, claim
from pipeline.outputs.owners import check_place
from pipeline.precision import announce_dtype
from pipeline.synthesis.capacity import describe_choice
from pipeline.synthesis.checkpoints import clear_checkpoints
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.dry_run import dry_run
from pipeline.synthesis.indexing import RunningIndex
from pipeline.synthesis.passes import invert_missing
from pipeline.synthesis.plan import SynthesisPlan, plan_synthesis
from pipeline.synthesis.pool import pool_options
from pipeline.synthesis.progress import report_plan
from pipeline.synthesis.report import write_pictures
from pipeline.synthesis.summary import summarize
from pipeline.synthesis.tally import Tally
from pipeline.torch_modes import usual_modes
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import Tracker, check_tracking, tracking


@usual_modes()
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
    check_tracking(config.tracking)
    return run_plan(config, plan_synthesis(config), started)


def run_plan(config: SynthesisConfig, plan: SynthesisPlan, started: float) -> dict[str, Any]:
    """Carry out a synthesis; see `synthesize`.

    Args:
        config: settings as the caller gave them.
        plan: plan of these settings, made a moment ago.
        started: when planning began, in seconds of the monotonic clock.

    Raises:
        DatasetError, IncompleteError: as `synthesize`.
    """
    done = f"all {len(plan.shards)} shards were done already" if plan.progress.complete else None
    for line in (plan.notice, plan.about_failed(), done):
        if line is not None:
            report_plan(line)
    if config.dry_run:
        return dry_run(plan)
    storage.with_retries(lambda: storage.check_writable(plan.config.output))
    # A run that finds nothing to do has nothing to report either.
    reported_to = config.tracking if plan.to_do else TrackingConfig()
    with tracking(reported_to, "synthesize", plan.digest, to_dict(config)) as tracker:
        summary = _make(plan, tracker, started)
        # Each worker would become a curve of its own.
        tracker.set_result({name: summary[name] for name in summary if name != "workers"})
        return summary


def _make(plan: SynthesisPlan, tracker: Tracker, started: float) -> dict[str, Any]:
    """Make the missing shards, and return the summary.

    Args:
        plan: plan of the run.
        tracker: where to report the run.
        started: when the run began, in seconds of the monotonic clock.

    Raises:
        DatasetError, IncompleteError: as `synthesize`.
    """
    tally, index = Tally(), RunningIndex(plan.config.output, plan.digest)
    to_do = plan.to_do
    if to_do:
        try:
            with own_errors():
                connect()
                # It raises if the cluster is too small, which must happen before anything is written.
                options = pool_options(plan.config, len(to_do))
                report_plan(describe_choice(plan.config.pool))
                announce_dtype(plan.config.inversion.dtype, on_gpu=bool(options.get("num_gpus")), on_nodes=True)
                claimed = storage.with_retries(lambda: _begin(plan))
                # If another run with these settings is at work, a random order keeps the two at different shards.
                if not claimed.new and not plan.is_shuffled:
                    random.shuffle(to_do)
                tally = invert_missing(plan, to_do, index, tracker)
        except IncompleteError as error:
            raise IncompleteError(f"{_counted(plan)}run it again for the rest: {error}") from error
    with storage.writing_to(plan.config.output):
        return _finish(plan, tally, index, time.monotonic() - started)


def _counted(plan: SynthesisPlan) -> str:
    """Say how many shards are done; nothing where that cannot be found out, which must not hide why the run ended."""
    try:
        done = len(storage.with_retries(lambda: store.list_parts(plan.config.output, plan.digest)))
    except DatasetError:
        return ""
    return f"{done} of {len(plan.shards)} shards are done, "


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


def _finish(plan: SynthesisPlan, tally: Tally, index: RunningIndex, seconds: float) -> dict[str, Any]:
    """Delete temporary files and checkpoints, complete the index, summarize, and write what people look at."""
    output = plan.config.output
    store.clear_temporaries(output)
    progress = storage.with_retries(lambda: store.read_progress(output, len(plan.shards), plan.digest))
    index.complete(progress.parts)
    _clear_checkpoints(output, progress)
    summary = {**summarize(plan, tally, index, progress), "seconds": round(seconds, 2)}
    return {**summary, **write_pictures(plan, summary, progress.done)}


def _clear_checkpoints(output: str, progress: store.Progress) -> None:
    """Delete checkpoints that killed workers left of shards that are done; nothing depends on them."""
    try:
        storage.with_retries(lambda: clear_checkpoints(output, progress.parts))
    except (DatasetError, OSError) as error:
        logger.warning(f"checkpoints are left in {output!r}, they could not be deleted: {one_line(error)}")
