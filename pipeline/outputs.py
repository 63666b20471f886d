"""Whose output a folder is, told from its files, so that no job writes into another's."""

from typing import Any, Literal

from pipeline import storage
from pipeline.dataset import store
from pipeline.errors import ConfigError, DatasetError

Job = Literal["synthesize", "calibrate", "distill"]
# Under the output of calibrate and distill; says under `job` whose it is.
CONFIG = "config.json"
_WHAT: dict[Job, str] = {
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
    return _job_of_config(config) if isinstance(config, dict) else None


def _job_of_config(config: dict[str, Any]) -> Job | None:
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
        raise DatasetError(f"output {output!r} holds {_WHAT[owner]}: {job} needs a folder of its own")
    if owner is None and job != "synthesize" and storage.exists(storage.join(output, CONFIG)):
        raise DatasetError(f"output {output!r} holds a {CONFIG} that is not of {_WHAT[job]}")


def check_shared(output: str) -> None:
    """Refuse an output that other processes cannot write to.

    Raises:
        ConfigError: it lies in the memory of this process.
    """
    if storage.in_memory(output):
        raise ConfigError(f"output {output!r} is in the memory of this process: workers need a folder or object store")
