"""Where a job is reported to."""

import re
from dataclasses import dataclass

from pipeline.checks import check_types
from pipeline.errors import ConfigError

# Part of a path and of a filter of MLflow.
_RUN_NAME = re.compile(r"\w[\w .+-]*")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a job reports its settings, its figures while it runs, and its result; nowhere by default.

    It changes no result. A run that is resumed goes on where it reported before. Where nobody answers, a line says so,
    and the job goes on without.

    Args:
        tensorboard: folder of TensorBoard's event files, at any fsspec URI; each run has a subfolder there. Needs the
            extra `tensorboard`.
        mlflow: address of an MLflow server, such as `http://127.0.0.1:5000`. Needs the extra `mlflow`.
        mlflow_experiment: MLflow's experiment; it is created if it does not exist.
        run_name: name of the run in both; by default the job and the first 8 digits of the digest. A restarted job
            continues the run of the same name and digest.
    """

    tensorboard: str | None = None
    mlflow: str | None = None
    mlflow_experiment: str = "sparse-inversion"
    run_name: str | None = None

    def __post_init__(self) -> None:
        check_types(self, "tracking.")
        for name in ("tensorboard", "mlflow", "mlflow_experiment"):
            if getattr(self, name) == "":
                raise ConfigError(f"tracking.{name} is empty: leave it out, or name a place")
        if self.run_name is not None and not _RUN_NAME.fullmatch(self.run_name):
            raise ConfigError(
                "tracking.run_name must start with a letter, a digit or '_' and contain only these, spaces, '.', '+' "
                f"and '-', not {self.run_name!r}"
            )
