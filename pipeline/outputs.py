"""Find out which job an output folder belongs to, so that no job writes into the output of another."""

from typing import Any, Literal

from pipeline import storage
from pipeline.dataset import store
from pipeline.errors import ConfigError, DatasetError

JobName = Literal["synthesize", "compact", "calibrate", "distill"]
# A file in the outputs of calibrate and distill, whose key `job` names the job.
CONFIG = "config.json"
WHAT: dict[JobName, str] = {
    "synthesize": "a synthetic dataset",
    "compact": "a compacted dataset",
    "calibrate": "a calibration",
    "distill": "a distillation",
}
# The end of a message about a file that one process wrote and another does not find.
NOT_SHARED = "is that a folder of a single machine? Give an output that all machines share, such as s3://..."
# Keys by which configs of earlier versions, without `job`, are recognized.
_KEYS: dict[JobName, set[str]] = {
    "calibrate": {"digest", "placement", "mode"},
    "distill": {"digest", "student", "dataset"},
}


def job_of(uri: str) -> JobName | None:
    """Return the job whose output a folder is; None if it is not an output.

    Raises:
        DatasetError: it cannot be read.
    """
    manifest_uri = store.manifest_uri(uri)
    if storage.exists(manifest_uri):
        return job_of_manifest(storage.read_json(manifest_uri))
    config_uri = storage.join(uri, CONFIG)
    config = storage.read_json(config_uri) if storage.exists(config_uri) else None
    return job_of_config(config) if isinstance(config, dict) else None


def job_of_manifest(manifest: Any) -> JobName:
    """Return the job that wrote a `manifest.json`."""
    return "compact" if isinstance(manifest, dict) and store.COMPACTION in manifest else "synthesize"


def job_of_config(config: dict[str, Any]) -> JobName | None:
    """Return the job whose `config.json` this is; None if it is of no job of this software."""
    for job, keys in _KEYS.items():
        if config.get("job") == job or ("job" not in config and keys <= config.keys()):
            return job
    return None


def check_output(output: str, job: JobName) -> None:
    """Refuse a folder that is the output of another job or has an unknown config, before anything is written there.

    Raises:
        DatasetError: it is, or it cannot be read.
    """
    owner = job_of(output)
    if owner not in (None, job):
        raise DatasetError(f"output {output!r} holds {WHAT[owner]}: {job} needs a folder of its own")
    if owner is None and job in _KEYS and storage.exists(storage.join(output, CONFIG)):
        raise DatasetError(f"output {output!r} holds a {CONFIG} that is not of {WHAT[job]}")


def check_place(output: str, *, shared: bool) -> None:
    """Refuse, before any work, an output that would be lost or to which other processes cannot write.

    Args:
        output: the folder.
        shared: whether other processes write to it.

    Raises:
        ConfigError: it is in the package that Ray unpacked for this job, or in the memory of this process.
    """
    if storage.in_job_package(output):
        raise ConfigError(
            f"output {output!r} would be in the package that Ray made of --working-dir, which Ray deletes "
            f"({storage.absolute(output)}): give an object store URI (--output s3://BUCKET/...), or an absolute path "
            "on a disk that all nodes share"
        )
    if shared and storage.in_memory(output):
        raise ConfigError(f"output {output!r} is in the memory of this process: workers need a folder or object store")
