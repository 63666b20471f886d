"""A run of an MLflow server, through the light client of `mlflow-skinny`."""

import logging
import os
import re
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from pipeline.credentials import remember_credentials
from pipeline.errors import ConfigError
from pipeline.tracking.places import THREAD, Status

# Variables that the user has set win over these. By default the client would try for many minutes, tell its makers
# what it is used for, and print addresses.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:")
_TAG = "sparse_inversion"
# Largest number of parameters that servers take at once, and largest length of a parameter in characters.
_PARAMETERS_AT_ONCE, _LONGEST = 100, 6000
# Characters that names on a server may not have.
_NOT_IN_NAMES = re.compile(r"[^\w./ -]")


def check_server(uri: str) -> None:
    """Import the client, and refuse an address that it cannot serve; the server itself is not asked.

    Raises:
        ConfigError: MLflow is missing, or the address is of a database.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    remember_credentials(uri)
    if find_spec("mlflow") is None:
        raise ConfigError("tracking.mlflow needs a package that is not installed: pip install '.[mlflow]'")
    if _DATABASE.match(uri) and not _is_whole():
        raise ConfigError(
            f"tracking.mlflow is the database {uri!r}, which needs the full mlflow package: give the address of a "
            f"server instead, started with `mlflow server --backend-store-uri {uri}`"
        )
    import mlflow  # noqa: F401

    logging.getLogger("urllib3.connectionpool").addFilter(_is_of_others)


def _is_whole() -> bool:
    try:
        return bool(version("mlflow"))
    except PackageNotFoundError:
        return False


def _is_of_others(record: logging.LogRecord) -> bool:
    """Leave out lines about requests that are tried again: the one line about giving up is enough."""
    return record.threadName != THREAD


class MlflowRun:
    """A run of a server, new or found by its tags.

    Args:
        uri: address of the server.
        experiment: name of the experiment.
        run: name of the run.
        tags: tags by which the run is found again.
    """

    def __init__(self, uri: str, experiment: str, run: str, tags: Mapping[str, str]) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.name = f"MLflow at {uri!r}"
        # A server of another kind may answer anything.
        self.errors: tuple[type[Exception], ...] = (MlflowException, OSError, ImportError, ValueError, KeyError)
        self._connect = lambda: MlflowClient(tracking_uri=uri)
        self._experiment, self._run_name = experiment, run
        self._tags = {f"{_TAG}.{name}": value for name, value in {**tags, "run": run}.items()}
        self._client: Any = None
        self._run = ""
        self._last = -1

    def begin(self, settings: Mapping[str, str]) -> None:
        """Go on in the run of these tags, or begin it; report the settings that it has not."""
        self._client = self._connect()
        experiment = self._find_experiment()
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in self._tags.items())
        found = self._client.search_runs([experiment], wanted, max_results=1)
        if found:
            run = found[0]
            self._last = int(run.data.tags.get(f"{_TAG}.step", -1))
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._client.create_run(experiment, run_name=self._run_name, tags=self._tags)
        self._run = run.info.run_id
        self._add_settings({name: text for name, text in _named(settings).items() if name not in run.data.params})

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        return self._client.create_experiment(self._experiment) if found is None else found.experiment_id

    def _add_settings(self, settings: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, text[:_LONGEST]) for name, text in settings.items()]
        for start in range(0, len(params), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + _PARAMETERS_AT_ONCE])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Report figures of a step, unless this or a later one was reported before."""
        if step > self._last:
            self._last = step
            self._add_figures(values)

    def _add_figures(self, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(1000 * time.time())
        figures = [Metric(name, value, now, max(0, self._last)) for name, value in _named(values).items()]
        # In one request, so that a resumed run knows what was reported.
        self._client.log_batch(self._run, metrics=figures, tags=[RunTag(f"{_TAG}.step", str(self._last))])

    def end(self, status: Status, values: Mapping[str, float]) -> None:
        """Report the result, at the last step, and how the run ended."""
        if values:
            self._add_figures(values)
        self._client.set_terminated(self._run, status=status)


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_NOT_IN_NAMES.sub("_", name): value for name, value in values.items()}
