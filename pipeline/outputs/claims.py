"""Claims of outputs: only runs with equal settings, and only one of them at a time, work on an output.

The claim is a file in the output (`manifest.json` or `config.json`) that is created before any work, and that no other
run replaces: if several runs start at once, one of them creates it, and the others compare. It has the keys `digest`
and `identity` (the facts, see `pipeline.outputs.identity`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipeline import storage
from pipeline.config import digest as digest_of
from pipeline.credentials import redacted
from pipeline.dataset import store
from pipeline.dataset.card import CARD
from pipeline.errors import DatasetError, one_line
from pipeline.log import logger
from pipeline.outputs.identity import differences, without_locations
from pipeline.outputs.lease import is_held, lease
from pipeline.outputs.names import CONFIG
from pipeline.outputs.owners import WHAT, JobName, check_output, job_of_config, job_of_manifest, qat_checkpoints

_CLAIMS: dict[JobName, str] = {
    "synthesize": store.MANIFEST,
    "compact": store.MANIFEST,
    "calibrate": CONFIG,
    "distill": CONFIG,
}
_MAX_NAMED = 5
# On a store without atomic creation, a claim may be read before it is complete.
_READ_ATTEMPTS, _READ_PAUSE_S = 6, 0.3


@dataclass(frozen=True)
class Claim:
    """The claim to an output of this run, or of one with equal settings.

    Attributes:
        document: content of the claim in the output. Its digest is the one to use.
        new: whether this run created the claim. If not, this run continues another one or works beside it.
    """

    document: dict[str, Any]
    new: bool


def check_same_settings(output: str, job: JobName, existing: dict[str, Any], document: dict[str, Any]) -> None:
    """Refuse an output that a run with other settings has claimed.

    Raises:
        DatasetError: the output belongs to another job, or its settings differ; the message names the job, or the first
            settings that differ.
    """
    owner = job_of_manifest(existing) if _CLAIMS[job] == store.MANIFEST else job_of_config(existing)
    if owner not in (None, job):
        raise DatasetError(f"output {output!r} holds {WHAT[owner]}: {job} needs a folder of its own")
    if job == "compact":
        existing, document = map(_compacted, (existing, document))
    if existing.get("digest") == document["digest"]:
        return
    facts, mine_facts = existing.get("identity"), document["identity"]
    if facts is None:
        # Written by an earlier version, with the facts at the top level, and paths among them.
        facts = {name: without_locations(existing[name]) for name in mine_facts if name in existing}
        mine_facts = {name: mine_facts[name] for name in facts}
    changed = list(differences(facts, mine_facts))
    # The digest is in the name and the seeds of each part, so that of a dataset must be equal.
    if not changed and (job == "synthesize" or not facts):
        changed = ["an unknown setting"]
    if changed:
        more = f" and {len(changed) - _MAX_NAMED} more" if len(changed) > _MAX_NAMED else ""
        raise DatasetError(
            f"output {output!r} holds {WHAT[job]} made with other settings: {'; '.join(changed[:_MAX_NAMED])}{more}"
            f"{_how_to_clear(output, job)}"
        )


def _compacted(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a compacted dataset as a claim that also covers how its parts were merged."""
    facts = {name: manifest.get(name) for name in ("digest", store.COMPACTION)}
    return {"digest": digest_of(facts), "identity": facts}


def find_config(output: str, job: JobName, document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the `config.json` of an earlier run with equal settings, or None; nothing is written.

    Args:
        output: folder of the output.
        job: the job of this run, `calibrate` or `distill`.
        document: the claim that this run would write.

    Raises:
        DatasetError: the output belongs to a run with other settings, or to another job.
    """
    check_output(output, job)
    uri = storage.join(output, CONFIG)
    if not storage.exists(uri):
        return None
    there = storage.read_json(uri)
    return there if _is_same(output, job, there, document) else None


def _is_same(output: str, job: JobName, there: dict[str, Any], document: dict[str, Any]) -> bool:
    """Return whether a claim has equal settings; False if it has other settings, and may be replaced.

    A training of a calibration that was stopped, and made nothing but checkpoints, may: they lie in a folder of their
    settings, where the next run with these finds them.

    Raises:
        DatasetError: the claim has other settings, and may not be replaced.
    """
    try:
        check_same_settings(output, job, there, document)
    except DatasetError:
        if job_of_config(there) != "calibrate" or job != "calibrate" or not _only_checkpoints(output):
            raise
        if is_held(output):
            raise
        return False
    return True


def _only_checkpoints(output: str) -> bool:
    """Return whether a calibration has made checkpoints of a training, and nothing else."""
    return {found for found, _ in storage.find_files(output)} <= {CONFIG} and bool(qat_checkpoints(output))


def _how_to_clear(output: str, job: JobName) -> str:
    """Say what to do about a claim of other settings; one without results has just begun, or was killed."""
    name = _CLAIMS[job]
    if {found for found, _ in storage.find_files(output)} - {CARD} != {name}:
        return "; give this run another output"
    but, anew = (" but checkpoints of a training", " to begin anew") if qat_checkpoints(output) else ("", "")
    return f"; nothing is made yet{but}: if that run is no longer at work, delete {storage.join(output, name)!r}{anew}"


def claim(output: str, job: JobName, document: dict[str, Any]) -> Claim:
    """Claim an output: create the claim if there is none; otherwise compare with it.

    Args:
        output: folder of the output.
        job: name of this run's job.
        document: the claim that this run would write, with `digest` and `identity`.

    Raises:
        DatasetError: the output belongs to a run with other settings or to another job, or cannot be written.
    """
    uri = storage.join(output, _CLAIMS[job])
    with storage.writing_to(output):
        new = storage.create_json(uri, document)
    there = _read(uri)
    if not _is_same(output, job, there, document):
        changed = "; ".join(list(differences(there.get("identity") or {}, document["identity"]))[:_MAX_NAMED])
        logger.info(f"{job}: a training of other settings was stopped in {output!r}, and this run begins: {changed}")
        with storage.writing_to(output):
            storage.write_json(uri, document)
        there, new = document, True
    _warn_if_credentials(uri, there)
    if new:
        try:
            # If another job claimed it with its own file at the same time, neither gets it.
            _check_no_other(output, job)
        except DatasetError:
            _withdraw(output, job, document)
            raise
    return Claim(there, new)


def _warn_if_credentials(uri: str, there: dict[str, Any]) -> None:
    """Warn of a claim with credentials in its settings, as earlier versions wrote them."""
    if redacted(there.get("config")) != there.get("config"):
        _warn_of_credentials(uri)


@cache
def _warn_of_credentials(uri: str) -> None:
    logger.warning(f"{uri!r} of an earlier version holds credentials: delete them from its `config`")


def _check_no_other(output: str, job: JobName) -> None:
    if _CLAIMS[job] == CONFIG:
        check_output(output, job)
        return
    uri = storage.join(output, CONFIG)
    owner = job_of_config(_read(uri)) if storage.exists(uri) else None
    if owner is not None:
        raise DatasetError(f"output {output!r} holds {WHAT[owner]}: {job} needs a folder of its own")


def _read(uri: str) -> dict[str, Any]:
    for _ in range(_READ_ATTEMPTS):
        try:
            return storage.read_json(uri)
        except DatasetError:
            time.sleep(_READ_PAUSE_S)
    return storage.read_json(uri)


def _withdraw(output: str, job: JobName, document: dict[str, Any]) -> None:
    """Withdraw a claim without results; a training goes on from its checkpoints only where it is not withdrawn."""
    uri = storage.join(output, _CLAIMS[job])
    try:
        made = {name for name, _ in storage.find_files(output)} - set(_CLAIMS.values()) or qat_checkpoints(output)
        if not made and storage.exists(uri) and storage.read_json(uri) == document:
            storage.remove(uri)
    except (DatasetError, OSError) as error:
        # This error must not hide why the run ended.
        logger.warning(f"{uri!r} of a run that made nothing is left: {one_line(error)}")


@contextmanager
def hold(output: str, job: JobName, document: dict[str, Any]) -> Iterator[tuple[Claim, bool]]:
    """Claim an output and hold its lease: if a run with equal settings is at work, wait for it.

    A run that fails before it made anything withdraws its claim. A run that is killed leaves it, and another run with
    equal settings continues it.

    Yields:
        The claim, and whether another run worked on the output in the meantime.

    Raises:
        DatasetError: as `claim`.
    """
    folders = storage.new_folders(output)
    done = new = False
    try:
        new = claim(output, job, document).new
        with lease(output, job) as waited:
            # The other run may have withdrawn its claim.
            claimed = claim(output, job, document)
            new = new or claimed.new
            try:
                yield Claim(claimed.document, new), waited
                done = True
            finally:
                if new and not done:
                    _withdraw(output, job, document)
    finally:
        if not done:
            storage.remove_empty(folders)
