"""Run the actor pool over missing shards, and again over those that its workers could not do."""

import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import cast

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle

from pipeline import storage
from pipeline.cluster import free_resources, is_fixed_size, start_here
from pipeline.errors import IncompleteError
from pipeline.log import printed_lines
from pipeline.synthesis.attempts import Attempts
from pipeline.synthesis.capacity import needs, seats
from pipeline.synthesis.checkpoints import shards_with_checkpoint
from pipeline.synthesis.devices import Device
from pipeline.synthesis.first_parts import FirstParts
from pipeline.synthesis.guard import GuardedWriter
from pipeline.synthesis.holders import hold_gpus
from pipeline.synthesis.indexing import RunningIndex
from pipeline.synthesis.metrics import RunMetrics
from pipeline.synthesis.outcome import Outcome, from_table
from pipeline.synthesis.plan import SynthesisPlan
from pipeline.synthesis.pool import pool_options, turn_s
from pipeline.synthesis.progress import ProgressReport, report_plan
from pipeline.synthesis.tally import Tally
from pipeline.synthesis.timeouts import set_timeouts
from pipeline.synthesis.tracked_shards import TrackedShards
from pipeline.tracking.tracker import Tracker
from pipeline.workers.progress import reporting

# The run stops after this many passes in a row in which no shard was finished.
_MAX_BARREN_PASSES = 3
# Ray Data is told of each turn by itself, before the first begins: a million of them take it an hour.
_MANY_TURNS = 20_000
# Turns of each worker beyond one for each shard: those that failed, and those that a retired worker holds.
_SPARE_TURNS = 2


def invert_missing(plan: SynthesisPlan, to_do: list[int], index: RunningIndex, tracker: Tracker | None = None) -> Tally:
    """Run the pool over the missing shards.

    Ray Data repeats a call on the actor that failed in it. So calls name no shard: workers take shards from `Attempts`,
    and one that a worker gives back is the next that another takes. Only what no worker of a pass can do is left to the
    next pass, with a pool that avoids retired devices.

    Args:
        plan: plan of the run.
        to_do: ids of the missing shards, in the order to do them.
        index: index of the dataset, to which parts are added as they are made.
        tracker: where to report the run; None for nowhere.

    Returns:
        What became of the shards.

    Raises:
        DatasetError: the checkpoints of an earlier run cannot be listed.
        IncompleteError: no worker is left, pass after pass finished nothing, or shard after shard failed because of
            storage.
    """
    attempts = _start(plan)
    tally = Tally()
    report = ProgressReport(
        tally,
        num_shards=len(plan.shards),
        num_done=len(plan.progress.done),
        num_images=plan.shards.count_images(to_do),
        stream=sys.stderr,
        why_silent=free_resources,
        num_failed=len(set(plan.progress.failed).difference(to_do)),
        whole_run=None if plan.config.inversion.adaptive_end is None else plan.config.inversion.num_steps,
    )
    metrics = RunMetrics(plan.digest, len(to_do))
    tracked = TrackedShards(tracker, plan)
    first_parts = FirstParts(plan.config.output, plan.digest, report.note)
    held: dict[Device, ActorHandle] = {}
    # A dict, because it keeps the order in which shards are done.
    left, barren = dict.fromkeys(to_do), 0
    try:
        with report, reporting(metrics.repeat_gauges):
            while left:
                retired = cast(dict[Device, str], ray.get(attempts.retired.remote()))
                _check_workers_left(plan, attempts, retired, barren)
                held |= hold_gpus([device for device in retired if device not in held])
                before = tally.num_ended
                # Closed whatever ends it: until then Ray Data keeps the actors of the pool, and they their GPUs.
                with closing(_one_pass(plan, list(left), attempts, retired)) as outcomes:
                    for outcome in _ended(outcomes, left, attempts, first_parts, report):
                        tally.add(outcome)
                        report.shard_finished(outcome)
                        tally.check_storage(outcome)
                        index.add(outcome)
                        metrics.add(outcome)
                        tracked.add(tally)
                barren = barren + 1 if tally.num_ended == before else 0
    finally:
        # In a process that goes on, the traceback of an error would keep these actors, and they their GPUs.
        for actor in (attempts, *held.values()):
            ray.kill(actor)
        index.save()
        tracked.report(tally)
    return tally


def _ended(
    outcomes: Iterable[Outcome],
    left: dict[int, None],
    attempts: ActorHandle,
    first_parts: FirstParts,
    report: ProgressReport,
) -> Iterator[Outcome]:
    """Yield each shard of a pass as it ends, and take it out of `left`, until none is left or the pass is over."""
    for outcome in outcomes:
        for note in outcome.notes:
            report.note(note)
        if outcome.over:
            return
        # A turn that Ray repeated may report a shard again.
        if outcome.handed_back or outcome.shard_id not in left:
            continue
        lost = "" if outcome.error else first_parts.why_lost(outcome)
        if lost:
            # The worker's node is to blame, also where an earlier run left the part on the node's own disk. Workers on
            # other nodes make the shard.
            ray.get(attempts.reject.remote(outcome.node, outcome.shard_id, lost))
            continue
        del left[outcome.shard_id]
        yield outcome
        if not left:
            return


def _start(plan: SynthesisPlan) -> ActorHandle:
    pool = plan.config.pool
    return start_here(
        Attempts,
        pool.max_attempts,
        actors_per_gpu=needs(pool).actors_per_gpu,
        begun_before=storage.with_retries(lambda: shards_with_checkpoint(plan.config.output, plan.digest)),
    )


def _one_pass(
    plan: SynthesisPlan, shard_ids: list[int], attempts: ActorHandle, retired: Mapping[Device, str]
) -> Generator[Outcome, None, None]:
    pool = plan.config.pool
    options = pool_options(plan.config, len(shard_ids), without=list(retired), overlapping=True)
    workers = options["compute"]
    opening = attempts.open_pass.remote(
        shard_ids,
        min(workers.max_size, seats(pool, without=list(retired))),
        fixed_size=is_fixed_size(),
        start_timeout_s=pool.start_timeout_s,
        num_turns=len(shard_ids) + _SPARE_TURNS * workers.max_size,
    )
    turns = [{"turn": number} for number in cast(range, ray.get(opening))]
    if len(turns) >= _MANY_TURNS:
        report_plan(f"no shard is begun before Ray Data knows of all {len(turns)} turns, which may take minutes")
    own = (
        plan.config,
        plan.digest,
        plan.manifest["schema_version"],
        plan.shards,
        attempts,
        turn_s(pool, workers.max_size),
    )
    rows = ray.data.from_items(turns, override_num_blocks=len(turns)).map_batches(
        GuardedWriter,
        fn_constructor_args=own,
        batch_size=1,
        **options,
    )
    set_timeouts(rows.context, pool)
    # An actor is busy with the two turns that it is called for; by default Ray would never add actors to such a pool.
    rows.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    # Without prefetching, so that a turn is reported when it is over, not when the next one is.
    for finished in rows.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        yield from from_table(cast(pa.Table, finished))


def _check_workers_left(plan: SynthesisPlan, attempts: ActorHandle, retired: Mapping[Device, str], barren: int) -> None:
    """Stop if the next pass would fail as the last one did; print the last traceback, if there is one.

    Raises:
        IncompleteError: no device is left to work on, or nothing was finished in several passes; the message names the
            devices that failed, and why storage gave workers no teacher.
    """
    none_left = bool(retired) and not seats(plan.config.pool, without=list(retired))
    if not none_left and barren < _MAX_BARREN_PASSES:
        return
    trace, put_off = cast(tuple[str, str], ray.get(attempts.last_errors.remote()))
    print(printed_lines(trace), end="", file=sys.stderr, flush=True)
    reasons = [f"storage gave a worker no teacher: {put_off}"] if put_off and not none_left else []
    reasons += [f"{device}: {reason}" for device, reason in retired.items()]
    more = [f"and {len(reasons) - 3} more"] if len(reasons) > 3 else []
    what = "no working worker is left" if none_left else f"nothing was finished in {barren} passes over what is left"
    raise IncompleteError(f"{what}: {'; '.join([*reasons[:3], *more])}".removesuffix(": "))
