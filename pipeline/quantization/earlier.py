"""What an earlier run left in the output of a calibration: its report, and files of artifacts."""

from typing import Any

from pipeline import storage
from pipeline.credentials import redacted
from pipeline.log import logger
from pipeline.quantization.artifact_files import MadeArtifacts
from pipeline.quantization.plan import CalibrationPlan
from pipeline.runs import Claim

# Written last, and removed before anything is replaced: it belongs to the `config.json` beside it.
REPORT = "report.json"


def finished_report(plan: CalibrationPlan, claimed: Claim, *, waited: bool) -> dict[str, Any] | None:
    """Return the report of a run with this config in every setting, where it need not be done again; else None.

    One that was waited for need not be. One of an earlier time is done again, which takes minutes, and measures and
    scores anew; but not if it trained (`qat`), which takes hours and ends with the same models.

    Args:
        plan: of this run.
        claimed: its claim.
        waited: whether another run worked on the output in the meantime.
    """
    output = plan.config.output
    uri = storage.join(output, REPORT)
    if redacted(claimed.document.get("config")) != plan.document["config"] or not storage.exists(uri):
        return None
    if waited:
        return storage.read_json(uri)
    if plan.config.qat is None or claimed.new:
        return None
    report = storage.read_json(uri)
    if report.get("complete") is not True or not _names(report) <= set(storage.list_files(output)):
        return None
    logger.info(f"calibrate: {output!r} is done with these settings; to train and measure again, delete {uri!r}")
    return report


def _names(report: dict[str, Any]) -> set[str]:
    """Return the names of artifacts; their folder may have been moved."""
    return {row["uri"].rpartition("/")[2] for row in report["artifacts"]}


def settle_refused(output: str, made: MadeArtifacts) -> list[dict[str, Any]]:
    """Delete files of an earlier run where this one's compute other logits, and leave them where it could make none.

    Returns:
        Rows of the report on what was refused; they say which files were left.

    Raises:
        OSError, DatasetError: a file could not be deleted, or looked for.
    """
    return [_leave(output, row) if row["artifact"] in made.not_made else _delete(output, row) for row in made.refused]


def _delete(output: str, row: dict[str, Any]) -> dict[str, Any]:
    for name in (row["artifact"], f"{row['artifact']}.data"):
        storage.remove(storage.join(output, name))
    return row


def _leave(output: str, row: dict[str, Any]) -> dict[str, Any]:
    if not storage.exists(storage.join(output, row["artifact"])):
        return row
    logger.warning(f"{row['artifact']} of an earlier run is left in {output!r}")
    return row | {"reason": f"{row['reason']}; the file of an earlier run is left"}
