"""Identity of a run, for all jobs that write: the facts that decide its output, and how those of two runs differ.

Paths are no facts, because a project may be moved.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipeline.config import digest as digest_of
from pipeline.config import first_default
from pipeline.config.former_names import LABELED
from pipeline.credentials import redacted
from pipeline.errors import quoted
from pipeline.outputs.owners import JobName

# Settings that only say where something is; its content is another fact.
_LOCATIONS = ("images", "output", "checkpoint")
# As `LOCAL_DIR` of pipeline.models, which imports torch: jobs that need none import this module.
_LOCAL_DIR = "local-dir:"
# Facts as people know them; settings are recorded under the names that they had first.
_CALLED = {
    **LABELED,
    "as_made": "images as the config of a synthesis",
    "class_names": "teacher.class_names",
    "class_names_sha256": "digest of teacher.class_names",
    "compaction.file_bytes": "file_mb (in bytes)",
    "compaction.num_files": "number of files",
    "compaction.num_parts": "number of parts in images",
    "compaction.parts_sha256": "digest of images",
    "dataset": "digest of images",
    "feature_model_renormalizes": "normalization of feature_model",
    "images_sha256": "digest of images",
    "ranking": "inversion.ranking",
    "torch_threads": "pool.cpus_per_actor",
}


def identifying_settings(
    config: Any, *, recorded: Collection[str], excluded: Collection[str], recorded_as: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the settings that belong to the identity of a run, as nested plain data.

    Every setting counts unless it is excluded, so that a new one cannot be forgotten. A new setting counts only if it
    differs from its first default, so that runs from before it existed keep their digest. To change the default later,
    state the first one with `pipeline.config.former_default`.

    Args:
        config: a dataclass of settings, perhaps with nested dataclasses.
        recorded: dotted names of settings that are in every digest whatever their value, because they have been there
            since the first version. Such a list never changes: a new setting needs no entry.
        excluded: dotted names of settings or whole sections that do not affect the result, or that a fact replaces, as
            the digest of weights replaces their path.
        recorded_as: today's dotted name of a renamed setting → its first name, at the top of the config. It is
            recorded, and listed in `recorded`, under the first name, so that renaming a setting changes no digest.
    """
    first_names = recorded_as or {}
    recorded = {*recorded, *(name for name, first in first_names.items() if first in recorded)}
    settings = _identifying(config, "", recorded, excluded)
    return _plain({first_names.get(name, name): value for name, value in settings})


def _identifying(
    config: Any, prefix: str, recorded: Collection[str], excluded: Collection[str]
) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if name in excluded:
            continue
        counts = name in recorded or value != first_default(field)
        if dataclasses.is_dataclass(value):
            section = dict(_identifying(value, f"{name}.", recorded, excluded))
            if counts or section:
                yield field.name, section
        elif counts:
            yield field.name, value


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON would give them back: lists instead of tuples, nested settings as mappings."""
    return json.loads(json.dumps(values, allow_nan=False, default=dataclasses.asdict))


def make_document(job: JobName, facts: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return a `config.json`: the facts that identify a run, their digest, and the config without credentials."""
    return _plain({"job": job, "digest": digest_of(facts), "identity": facts, "config": redacted(config)})


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Describe each value that differs between two nested mappings of plain data."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted(there.keys() | here.keys()):
            yield from differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{_called(name.removeprefix('config.'))} is {quoted(there)} there, {quoted(here)} here"


def _called(name: str) -> str:
    """Return the name by which people know a fact, given its dotted name."""
    first, dot, rest = name.partition(".")
    return _CALLED.get(name) or f"{_CALLED.get(first, first)}{dot}{rest}"


def without_locations(value: Any) -> Any:
    """Return settings without those that only say where something is.

    The contents of weights, images and class names are facts of their own. Whether there are labeled images is kept.
    """
    if not isinstance(value, Mapping):
        return value
    kept: dict[str, Any] = {}
    for name, setting in value.items():
        if name in _LOCATIONS or (name == "class_names" and isinstance(setting, str)):
            continue
        if name == "name" and str(setting).startswith(_LOCAL_DIR):
            continue
        kept[name] = setting is not None if name == "labelled" else without_locations(setting)
    return kept
