"""Find out which job an output folder belongs to, so that no job writes into another's."""

from typing import Any, Literal

from pipeline import storage
from pipeline.dataset import store
from pipeline.errors import ConfigError, DatasetError

Job = Literal["synthesize", "calibrate", "distill"]
# Under the output of calibrate and distill; says under `job` whose it is.
CONFIG = "config.json"
WHAT: dict[Job, str] = {
    "synthesize": "a synthetic dataset",
    "calibrate": "a calibration",
    "distill": "a distillation",
}
# What a config without `job` is known by: they came before it.
_KEYS: dict[Job, set[str]] = {"calibrate": {"digest", "placement", "mode"}, "distill": {"digest", "student", "dataset"}}


def job_of(uri: str) -> Job | None:
    """The job that a folder is the output of; None where it is none's.

    Raises:
        DatasetError: it cannot be read.
    """
    if storage.exists(store.manifest_uri(uri)):
        return "synthesize"
    config_uri = storage.join(uri, CONFIG)
    config = storage.read_json(config_uri) if storage.exists(config_uri) else None
    return job_of_config(config) if isinstance(config, dict) else None


def job_of_config(config: dict[str, Any]) -> Job | None:
    """Return the job whose `config.json` this is; None where it is none's that we know."""
    for job, keys in _KEYS.items():
        if config.get("job") == job or ("job" not in config and keys <= config.keys()):
            return job
    return None


def check_output(output: str, job: Job) -> None:
    """Refuse a folder that is another job's output, or nobody's that we know, before anything is written there.

    Raises:
        DatasetError: it is, or it cannot be read.
    """
    owner = job_of(output)
    if owner not in (None, job):
        raise DatasetError(f"output {output!r} holds {WHAT[owner]}: {job} needs a folder of its own")
    if owner is None and job != "synthesize" and storage.exists(storage.join(output, CONFIG)):
        raise DatasetError(f"output {output!r} holds a {CONFIG} that is not of {WHAT[job]}")


def check_place(output: str, *, shared: bool) -> None:
    """Refuse an output that would be lost, or that other processes cannot write to, before any work.

    Args:
        output: the folder.
        shared: whether other processes write to it.

    Raises:
        ConfigError: it lies in the package that Ray unpacked for this job, or in the memory of this process.
    """
    if storage.in_job_package(output):
        raise ConfigError(
            f"output {output!r} would lie in the package that Ray made of --working-dir, and Ray deletes that "
            f"({storage.absolute(output)}): give an object store URI (--output s3://BUCKET/...), or an absolute path "
            "on a disk that all nodes share"
        )
    if shared and storage.in_memory(output):
        raise ConfigError(f"output {output!r} is in the memory of this process: workers need a folder or object store")
