"""Find out which job an output folder belongs to, so that no job writes into the output of another."""

import os
import posixpath
import re
from collections.abc import Iterable
from typing import Any, Literal

from pipeline import storage
from pipeline.dataset import store
from pipeline.dataset.part_files import DATA
from pipeline.dataset.source import Source
from pipeline.errors import ConfigError, DatasetError, first_few
from pipeline.outputs.names import CONFIG, QAT_CHECKPOINTS

JobName = Literal["synthesize", "compact", "calibrate", "distill"]
WHAT: dict[JobName, str] = {
    "synthesize": "a synthetic dataset",
    "compact": "a compacted dataset",
    "calibrate": "a calibration",
    "distill": "a distillation",
}
# The end of a message about a file that one process wrote and another does not find.
NOT_SHARED = "is that a folder of a single machine? Give an output that all machines share, such as s3://..."
# Suffixes of files that people put into an output before a job begins: its config, its log, notes.
_BESIDE = (".err", ".log", ".md", ".out", ".txt", ".yaml", ".yml")
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
    """Return the job whose `config.json` this is; None if no job of this software wrote it."""
    for job, keys in _KEYS.items():
        if config.get("job") == job or ("job" not in config and keys <= config.keys()):
            return job
    return None


def qat_checkpoints(output: str) -> list[str]:
    """Return the checkpoints of trainings in the output of a calibration, from which it can go on.

    Raises:
        DatasetError: they cannot be listed.
    """
    return [name for name, _ in storage.find_files(storage.join(output, QAT_CHECKPOINTS)) if name.endswith(".pt")]


def check_output(output: str, job: JobName) -> None:
    """Refuse a folder that is the output of another job or has an unknown config, before anything is written there.

    For calibrate and distill, which write many files and folders, a folder of other things is refused as well.

    Raises:
        DatasetError: the folder is not for this job, or cannot be read.
    """
    owner = job_of(output)
    if owner not in (None, job):
        raise DatasetError(f"output {output!r} holds {WHAT[owner]}: {job} needs a folder of its own")
    if owner == job or job not in _KEYS:
        return
    if storage.exists(storage.join(output, CONFIG)):
        raise DatasetError(f"output {output!r} holds a {CONFIG} that is not of {WHAT[job]}")
    others = _others(output)
    if others:
        raise DatasetError(
            f"output {output!r} holds {first_few(others)}, and no {CONFIG} of {WHAT[job]}: {job} needs a folder of its "
            "own"
        )


def _others(output: str) -> list[str]:
    """Return the entries of a folder that no job has begun in, without hidden files, which stopped jobs leave."""
    files = [name for name in storage.list_files(output) if not name.lower().endswith(_BESIDE)]
    return sorted(files + [f"{name}/" for name in storage.list_folders(output)])


def check_place(output: str, *, shared: bool) -> None:
    """Refuse, before any work, an output that would be lost or to which other processes cannot write.

    Args:
        output: folder of the output.
        shared: whether other processes write to it too.

    Raises:
        ConfigError: it is empty, names a variable, is in the package that Ray unpacked for this job, or in the memory
            of this process.
    """
    # An unset shell variable leaves an empty location, which would be read as the working folder.
    if not output:
        raise ConfigError("output must name a folder, it is empty")
    for variable in re.findall(r"\$\{?(\w+)", output):
        if variable in os.environ:
            raise ConfigError(
                f"output {output!r} would be a folder of that name: only a shell replaces ${variable} by its value, so "
                "write the value, or give --output there"
            )
    if storage.in_job_package(output):
        raise ConfigError(
            f"output {output!r} would be in the package that Ray made of --working-dir, which Ray deletes "
            f"({storage.absolute(output)}): give an object store URI (--output s3://BUCKET/...), or an absolute path "
            "on a disk that all nodes share"
        )
    if shared and storage.in_memory(output):
        raise ConfigError(f"output {output!r} is in the memory of this process: workers need a folder or object store")


def check_apart(output: str, images: Iterable[Source]) -> None:
    """Refuse an output that lies among the images: the next run would read other images.

    Args:
        output: folder of the output.
        images: images that the job reads. Of a synthetic dataset, only the folder of its parts is read.

    Raises:
        ConfigError: the output is a folder of images, lies in one, or is the folder of a synthetic dataset.
    """
    place = whole_path(output)
    for source in images:
        folder = source.uri if source.manifest is None else storage.join(source.uri, DATA)
        if place.startswith(whole_path(folder)):
            raise ConfigError(
                f"output {output!r} is inside the images {folder!r}, where its files would be read as images: give it "
                "a folder of its own"
            )
        # The folder of images may not exist yet.
        if place == whole_path(source.uri):
            raise ConfigError(f"output {output!r} is the folder of the images: give it a folder of its own")


def whole_path(uri: str) -> str:
    """Return a location with a slash at its end, so that one that lies in another begins with it."""
    fs, path = storage.filesystem(uri)
    kind = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return f"{kind}://{posixpath.realpath(path) if storage.is_local(uri) else path.strip('/')}/"


def check_no_output(uri: str) -> None:
    """Refuse the output of a job for what another writes, whose `report.html` would be replaced.

    Raises:
        DatasetError: the folder is such an output, or cannot be read.
    """
    owner = job_of(uri)
    if owner is not None:
        raise DatasetError(f"output {uri!r} holds {WHAT[owner]}: evaluate needs a folder of its own")
