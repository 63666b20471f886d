"""Report a run to where its settings say, without ever holding it up.

Each place is served by a thread of its own. What a place does not take within its own limits of time is given up with
one warning: a job of a week does not fail for its charts.
"""

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from pipeline.credentials import redacted
from pipeline.errors import PipelineError, one_line
from pipeline.log import logger
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.places import RESULT, THREAD, Place, Status

# Seconds that a job waits at its end for figures that were not taken yet.
_LAST_WAIT_S = 10.0


class Tracker:
    """Passes the figures of a run on to places, perhaps none.

    Args:
        places: places to report to; may be empty.
        settings: settings of the run, as texts by dotted name.
    """

    def __init__(self, places: list[Place], settings: Mapping[str, str]) -> None:
        self._channels = [_Channel(place, settings) for place in places]
        self._result: Mapping[str, Any] = {}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Report figures of a step; those that were reported before stay. Only finite numbers are, see `numbers`."""
        for channel in self._channels:
            channel.add(step, numbers(values))

    def set_result(self, result: Mapping[str, Any]) -> None:
        """Set what is reported at the end of the run; with `"complete": False` in it the run counts as failed."""
        self._result = result

    def close(self, status: Status) -> None:
        """Report the end, and wait for a few seconds until that is done."""
        done = status == "FINISHED" and self._result.get("complete", True)
        values = {f"{RESULT}{name}": value for name, value in numbers(self._result).items()}
        for channel in self._channels:
            channel.end("FAILED" if status == "FINISHED" and not done else status, values)
        deadline = time.monotonic() + _LAST_WAIT_S
        for channel in self._channels:
            channel.wait(max(0.0, deadline - time.monotonic()))


class _Channel:
    """The thread that serves one place, and the reports that wait for it."""

    def __init__(self, place: Place, settings: Mapping[str, str]) -> None:
        self._place = place
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(settings,), daemon=True, name=THREAD)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        # If the thread has given up, further figures would only fill the memory.
        if self._thread.is_alive():
            self._waiting.put(partial(self._place.add, step, values))

    def end(self, status: Status, values: Mapping[str, float]) -> None:
        self._waiting.put(partial(self._place.end, status, values))
        self._waiting.put(None)

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning(f"tracking: {self._place.name} did not accept the last figures within {_LAST_WAIT_S:.0f} s")

    def _serve(self, settings: Mapping[str, str]) -> None:
        try:
            self._place.begin(settings)
            while (report := self._waiting.get()) is not None:
                report()
        except self._place.errors as error:
            logger.warning(f"tracking: cannot report to {self._place.name}, giving up on it: {one_line(error)}")


@contextmanager
def tracking(config: TrackingConfig, job: str, digest: str, settings: Mapping[str, Any]) -> Iterator[Tracker]:
    """Report a run while the block runs, and at its end how it ended.

    Args:
        config: where to report. If that is nowhere, nothing is imported or started.
        job: name of the job.
        digest: digest of the run, by which a resumed run is found again.
        settings: settings of the run, as nested plain data. They are sent as parameters, without credentials and
            without `tracking`.
    """
    run = config.run_name or f"{job}-{digest[:8]}"
    tracker = Tracker(_places(config, run, {"job": job, "digest": digest}), flat(redacted(without_tracking(settings))))
    status: Status = "KILLED"
    try:
        yield tracker
        status = "FINISHED"
    except (PipelineError, OSError):
        status = "FAILED"
        raise
    finally:
        tracker.close(status)


def check_tracking(config: TrackingConfig) -> None:
    """Import what is needed to report, before any work.

    Raises:
        ConfigError: a package is not installed; the message names the extra to install.
    """
    if config.tensorboard is not None:
        from pipeline.tracking.event_folder import check_installed

        check_installed()
    if config.mlflow is not None:
        from pipeline.tracking.mlflow_run import check_server

        check_server(config.mlflow)


def _places(config: TrackingConfig, run: str, tags: Mapping[str, str]) -> list[Place]:
    # Imported here, as `check_tracking` did: the packages are optional, and one takes seconds.
    places: list[Place] = []
    if config.tensorboard is not None:
        from pipeline.tracking.event_folder import EventFolder

        places.append(EventFolder(config.tensorboard, run))
    if config.mlflow is not None:
        from pipeline.tracking.mlflow_run import MlflowRun

        places.append(MlflowRun(config.mlflow, config.mlflow_experiment, run, tags))
    return places


def without_tracking(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those of where they are reported to."""
    return {name: value for name, value in settings.items() if name != "tracking"}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as text by dotted name; a list is JSON."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers in nested values, by name with slashes; lists and truth values are left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found
