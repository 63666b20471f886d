"""Show what is done, missing and failed in an output: `python -m jobs.status URI`; `--watch` keeps watching."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.entry import LEVELS, read_level, run_job
from jobs.watching import watch
from pipeline import storage
from pipeline.artifacts.formats import format_of, unlisted_artifacts
from pipeline.checks import check_range, check_types
from pipeline.dataset import store
from pipeline.dataset.damage import damaged_parts
from pipeline.dataset.index import load_index, num_retried, parts_without_row, valid_rows
from pipeline.dataset.undone import list_undone
from pipeline.dataset.work import check_price, work_done
from pipeline.documents import parse_json
from pipeline.errors import ConfigError, DatasetError, first_few, quoted
from pipeline.file_kinds import MODEL_CONFIG
from pipeline.outputs.names import BEST, CHECKPOINTS, CONFIG, EVALUATION, LAST, METRICS, RANGES, REPORT, RESULT
from pipeline.outputs.owners import job_of, qat_checkpoints

_WITHOUT_VALUE = ("--help", "--print_config")


# Largest value of `every_s`: longer intervals are useless, and `time.sleep` has a limit.
_DAY_S = 86_400
# Largest number of folders in a location that are searched for outputs.
_MOST_FOLDERS = 20


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Show what is done, missing and failed in the output of a job.

    Args:
        uri: the output of a synthesize, compact, calibrate or distill job.
        watch: keep watching until the run is over: a table that is updated in place on a terminal, a line for each
            change elsewhere. Ctrl-C ends it.
        every_s: seconds between updates.
    """

    uri: str
    watch: bool = False
    every_s: float = 10.0

    def __post_init__(self) -> None:
        check_types(self)
        if not self.uri:
            raise ConfigError("uri must name the output of a job, it is empty")
        check_range("every_s", self.every_s, 0.1, _DAY_S)


def status(config: StatusConfig) -> dict[str, Any]:
    """Look at an output, once or until its run is over.

    Raises:
        DatasetError: as `look`.
    """
    if config.watch:
        return watch(lambda: look(config.uri), every_s=config.every_s, stream=sys.stderr)
    return look(config.uri)


def look(uri: str) -> dict[str, Any]:
    """Look at the files of an output; no model is loaded and no image read.

    Raises:
        DatasetError: no job's output is there, it cannot be read, or foreign files are in it.
    """
    job = job_of(uri)
    if job is None:
        raise DatasetError(f"{uri!r} {_why_no_output(uri)}")
    looks = {"synthesize": _dataset, "compact": _dataset, "calibrate": _calibration, "distill": _distillation}
    return {"job": job, "output": uri, **looks[job](uri)}


def _why_no_output(uri: str) -> str:
    """Say what is at a location that is no job's output, as the predicate of a sentence."""
    if not storage.exists(uri):
        return f"is not there: no file or folder has that name{storage.why_missing(uri)}"
    if storage.is_file(uri):
        return "is a file: give the folder that a job wrote it into"
    if storage.exists(storage.join(uri, EVALUATION)):
        return f"is the output of jobs.evaluate, which is complete once it has its {EVALUATION}"
    holds = "holds neither a synthetic dataset nor the output of a calibration or a distillation"
    if qat_checkpoints(uri):
        return f"{holds}, but checkpoints of a calibration that was stopped: run it again, and it goes on from them"
    if outputs := _outputs_below(uri):
        return f"{holds}, but {first_few(outputs)}: give one of these"
    return holds if storage.find_files(uri) else f"{holds}: it is empty, no job has begun there"


def _outputs_below(uri: str) -> list[str]:
    """Return the outputs among the folders in a location and in those folders; of many folders, only the first."""
    found: list[str] = []
    for name in storage.list_folders(uri)[:_MOST_FOLDERS]:
        inner = storage.join(uri, name)
        if job_of(inner) is not None:
            found.append(name)
            continue
        names = storage.list_folders(inner)[:_MOST_FOLDERS]
        found += [f"{name}/{each}" for each in names if job_of(storage.join(inner, each)) is not None]
    return found


def _dataset(uri: str) -> dict[str, Any]:
    """Describe a dataset from its manifest, its index and the parts that are not in it, and its failures."""
    manifest = store.read_manifest(uri)
    digest = manifest["digest"]
    progress = store.read_progress(uri, manifest["num_shards"], digest)
    index = valid_rows(load_index(uri, digest), progress.parts)
    damaged = damaged_parts(uri, digest, parts_without_row(index, progress.parts))
    return {
        "complete": progress.complete and not damaged,
        "digest": digest,
        "num_shards": manifest["num_shards"],
        "num_done": len(progress.done),
        **list_undone(
            failed=list(progress.failed.values()),
            missing=progress.missing,
            damaged=[{"shard_id": shard_id, "reason": reason} for shard_id, reason in damaged.items()],
        ),
        "num_retried": num_retried(index),
        "num_images": manifest["num_images"],
        **_compacted(uri, manifest),
        **work_done(_seconds_by_device(index), **_pool(uri, manifest)),
    }


def _compacted(uri: str, manifest: dict[str, Any]) -> dict[str, int]:
    """Return how many parts a compaction merges, which may be fewer than the shards; empty for any other dataset."""
    if store.COMPACTION not in manifest:
        return {}
    facts = manifest[store.COMPACTION]
    num_parts = facts.get("num_parts") if isinstance(facts, dict) else None
    if not isinstance(num_parts, int):
        raise DatasetError(f"{store.MANIFEST} of {uri!r} has {quoted(facts)} as {store.COMPACTION!r}")
    return {"num_parts": num_parts}


def _seconds_by_device(index: pa.Table) -> dict[str | None, float]:
    """Return kind of device → seconds of the actors on it, summed over the parts whose seconds are known."""
    seconds: defaultdict[str | None, float] = defaultdict(float)
    for device, each in zip(index["device"].to_pylist(), index["seconds"].to_pylist(), strict=True):
        seconds[device] += each or 0.0
    return seconds


def _pool(uri: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the pool's share of a GPU and price of an actor, with which the dataset was begun."""
    config = manifest.get("config")
    settings = config.get("pool") if isinstance(config, dict) else None
    pool = settings if isinstance(settings, dict) else {}
    share, price = pool.get("gpus_per_actor", 1.0), pool.get("price_per_hour")
    try:
        check_price(share, price)
    except ConfigError as error:
        raise DatasetError(f"{store.MANIFEST} of {uri!r}: {error}") from error
    return {"gpus_per_actor": share, "price_per_hour": price}


def _calibration(uri: str) -> dict[str, Any]:
    """Describe a calibration from its report, which is written last, and the artifacts that it names."""
    there = storage.list_files(uri)
    artifacts = made = [name for name in there if format_of(name) is not None]
    wanted, failed = [RANGES, REPORT], []
    if REPORT in there:
        # By their names: a folder may have been moved, or looked at from elsewhere.
        report = _read_object(storage.join(uri, REPORT))
        named = _artifact_names(uri, report.get("artifacts") or [])
        wanted += named
        made = [name for name in artifacts if name in named]
        failed = report.get("failed") or []
    missing = [name for name in wanted if name not in there]
    return {
        "complete": not missing and not failed,
        "digest": _read_object(storage.join(uri, CONFIG)).get("digest"),
        "artifacts": made,
        # Artifacts of an earlier run. Without a report they cannot be told apart.
        "left": unlisted_artifacts(there, made),
        "failed": failed,
        "missing": missing,
    }


def _distillation(uri: str) -> dict[str, Any]:
    """Describe a training from its settings, the metrics of each epoch, and its result, which is written last."""
    config = _read_object(storage.join(uri, CONFIG))
    settings = config.get("config")
    metrics_uri = storage.join(uri, METRICS)
    lines = storage.read_bytes(metrics_uri).splitlines() if storage.exists(metrics_uri) else []
    wanted = [f"{BEST}/{MODEL_CONFIG}", f"{LAST}/{MODEL_CONFIG}", RESULT]
    missing = [name for name in wanted if not storage.exists(storage.join(uri, name))]
    return {
        "complete": not missing,
        "digest": config.get("digest"),
        "epochs": settings.get("epochs") if isinstance(settings, dict) else None,
        "epochs_done": _epoch(metrics_uri, lines[-1]) if lines else 0,
        "checkpoints": storage.list_files(storage.join(uri, CHECKPOINTS)),
        "missing": missing,
    }


def _read_object(uri: str) -> dict[str, Any]:
    value = storage.read_json(uri)
    if not isinstance(value, dict):
        raise DatasetError(f"{uri!r} is no JSON object")
    return value


def _artifact_names(uri: str, rows: Any) -> list[str]:
    if not isinstance(rows, list):
        raise DatasetError(f"{REPORT} of {uri!r} has {quoted(rows)} for its artifacts, which is no list")
    return [_artifact_name(uri, row) for row in rows]


def _artifact_name(uri: str, row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("uri"), str):
        raise DatasetError(f"{REPORT} of {uri!r} lists {quoted(row)}, which is no artifact")
    return row["uri"].rpartition("/")[2]


def _epoch(uri: str, line: bytes) -> Any:
    try:
        return parse_json(line)["epoch"]
    except (ValueError, LookupError, TypeError) as error:
        raise DatasetError(f"{uri!r} does not end with the metrics of an epoch: {quoted(line)}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the URI may stand alone, without `--uri`, and `--watch` without a value."""
    given = list(sys.argv[1:] if argv is None else argv)
    _, flags = read_level(given)
    for place, flag in enumerate(flags):
        if flag == "--watch" and flags[place + 1 : place + 2] not in (["true"], ["false"]):
            flags[place] = "--watch=true"
    alone = [place for place, flag in enumerate(flags) if not flag.startswith("-") and not _takes_next(flags[:place])]
    if len(alone) == 1:
        flags.insert(alone[0], "--uri")
    return run_job("status", StatusConfig, status, [flag for flag in given if flag in LEVELS] + flags)


def _takes_next(flags: Sequence[str]) -> bool:
    """Return whether the next argument after these flags is the value of the last one."""
    return bool(flags) and flags[-1].startswith("--") and "=" not in flags[-1] and flags[-1] not in _WITHOUT_VALUE


if __name__ == "__main__":
    sys.exit(main())
