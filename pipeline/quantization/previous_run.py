"""Take over or clear what an earlier run left in the output of a calibration: its report, and files of artifacts."""

from typing import Any

from pipeline import storage
from pipeline.artifacts.formats import unlisted_artifacts
from pipeline.credentials import redacted
from pipeline.errors import first_few
from pipeline.log import logger
from pipeline.outputs import Claim
from pipeline.outputs.names import REPORT
from pipeline.quantization.plan import CalibrationPlan

# Settings of a calibration and of its `qat`; the contents of teacher and images are in the digest.
_WHERE_AND_HOW = (
    *("teacher", "images", "output", "workers", "allow_incomplete", "allow_other_teacher", "score_batch_size"),
    *("tracking", "cache_gb", "checkpoint_minutes"),
)


def finished_report(plan: CalibrationPlan, claimed: Claim, *, waited: bool) -> dict[str, Any] | None:
    """Return the report of a run that was asked for the same, where it need not be done again; else None.

    One that was waited for need not be. One of an earlier time is done again, which takes minutes, and measures and
    scores anew; but not if it trained (`qat`), which takes hours and ends with the same models.

    Args:
        plan: plan of this run.
        claimed: the claim of this run on the output.
        waited: whether another run worked on the output in the meantime.
    """
    output = plan.config.output
    uri = storage.join(output, REPORT)
    if not waited and (plan.config.qat is None or claimed.new):
        return None
    asked = [_asked(document.get("config") or {}) for document in (claimed.document, plan.document)]
    if asked[0] != asked[1] or not storage.exists(uri):
        return None
    report = storage.read_json(uri)
    if waited:
        return report
    if not is_final(report) or not _all_there(report, output):
        return None
    refused = [row["artifact"] for row in report.get("failed", ())]
    but = f", but for what cannot be made ({first_few(refused)})" if refused else ""
    logger.info(f"calibrate: {output!r} is done with these settings{but}; to train and measure again, delete {uri!r}")
    return _located(report, output)


def is_final(report: dict[str, Any]) -> bool:
    """Return whether the same job would make nothing more: all artifacts are there that can ever be made."""
    failed = report.get("failed", ())
    # Reports of earlier versions do not say whether an artifact may still come.
    return report.get("complete") is True or bool(failed and not any(row.get("may_come", True) for row in failed))


def _asked(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what is made, where digests are equal: not those of where and how fast."""
    kept = {name: value for name, value in redacted(config).items() if name not in _WHERE_AND_HOW}
    qat = {name: value for name, value in (config.get("qat") or {}).items() if name not in _WHERE_AND_HOW}
    return kept | {"qat": qat}


def _all_there(report: dict[str, Any], output: str) -> bool:
    there = storage.list_files(output)
    gone = [name for name in _artifact_names(report) if name not in there]
    if gone:
        logger.warning(
            f"{storage.join(output, gone[0])!r} of a finished calibration is missing: it is trained and made again"
        )
    return not gone


def _located(report: dict[str, Any], output: str) -> dict[str, Any]:
    """Return a report with files where they lie now: the folder may have been moved."""

    def here(row: dict[str, Any]) -> dict[str, Any]:
        found = {name: row[name] for name in ("uri", "ranges", "sensitivity") if name in row}
        return row | {name: storage.join(output, _file_name(uri)) for name, uri in found.items()}

    trained = {label: here(row) for label, row in report.get("qat", {}).items()}
    return here(report) | {"artifacts": [here(row) for row in report["artifacts"]], "qat": trained}


def _artifact_names(report: dict[str, Any]) -> list[str]:
    return [_file_name(row["uri"]) for row in report["artifacts"]]


def _file_name(uri: str) -> str:
    return uri.rpartition("/")[2]


def find_left(output: str, report: dict[str, Any]) -> list[str]:
    """Return the artifacts in an output that its report does not name: an earlier run made them, and they are left."""
    named = {*_artifact_names(report), *(row["artifact"] for row in report.get("failed", ()))}
    left = unlisted_artifacts(storage.list_files(output), named)
    if left:
        logger.warning(f"{first_few(left)} of an earlier run stay in {output!r}: {REPORT} no longer has their figures")
    return left


def settle_refused(output: str, refused: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Delete files of an earlier run where this one's compute other logits, and leave them where it could make none.

    Args:
        output: folder of the calibration.
        refused: rows of the artifacts that could not be made, from `MadeArtifacts`.

    Returns:
        These rows; they say which files were left.

    Raises:
        OSError, DatasetError: a file could not be deleted, or looked for.
    """
    return [_delete(output, row) if "deviation" in row else _leave(output, row) for row in refused]


def _delete(output: str, row: dict[str, Any]) -> dict[str, Any]:
    for name in (row["artifact"], f"{row['artifact']}.data"):
        storage.remove(storage.join(output, name))
    return row


def _leave(output: str, row: dict[str, Any]) -> dict[str, Any]:
    if not storage.exists(storage.join(output, row["artifact"])):
        return row
    logger.warning(f"{row['artifact']} of an earlier run is left in {output!r}")
    return row | {"reason": f"{row['reason']}; the file of an earlier run is left"}
