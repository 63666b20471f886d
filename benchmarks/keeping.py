"""Keep what a benchmark has measured, so that an interrupted one goes on."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.bench import Bench
from pipeline import storage
from pipeline.outputs import identifying_settings

Figures = dict[str, float]
_EXCLUDED = ("teacher.name", "images", "labeled", "output", "workers", "pool")


def kept_or_measured(bench: Bench, name: str, settings: Any, measure: Callable[[], Figures]) -> Figures:
    """Return the figures of an earlier run with equal settings; otherwise measure and keep them.

    Args:
        bench: whose folder they are kept in.
        name: of what is measured.
        settings: all that the figures depend on, as plain data.
        measure: returns the figures.
    """
    uri = bench.path("cells", f"{name}.json")
    settings = json.loads(json.dumps(settings))
    if storage.exists(uri):
        cell = storage.read_json(uri)
        if cell["settings"] == settings:
            return cell["figures"]
    found = measure()
    storage.write_json(uri, {"settings": settings, "figures": found})
    return found


def rerun(config: Any, job: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Run a job over whatever an earlier run left in its output."""
    storage.remove_folder(config.output)
    return job(config)


def comparable_settings(config: Any, made: Sequence[Any] = ()) -> dict[str, Any]:
    """Return the settings that figures depend on and that differ from their defaults.

    A new setting and a moved folder leave what is kept usable: paths are the same in every folder.

    Args:
        config: of a job.
        made: configs of the synthetic images that it reads, if it reads any.
    """
    own = identifying_settings(config, recorded=(), excluded=_EXCLUDED)
    return {**own, "synthesis": [comparable_settings(synthesis) for synthesis in made]} if made else own
