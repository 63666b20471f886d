"""Storage, resources and errors of Ray Train runs."""

from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import CheckpointError, ConfigError, IncompleteError, OtherModelError, PipelineError
from pipeline.training import fit, fit_again, run_config, worker_configs
from pipeline.workers import WorkersConfig


class FailingTrainer:
    """Stands for a trainer whose workers failed, which takes Ray Train ten seconds to find out."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    def fit(self) -> None:
        if isinstance(self.failure, ControllerError):
            raise self.failure
        raise WorkerGroupError("workers failed", {1: self.failure})


@pytest.mark.usefixtures("ray_session")
def test_an_error_of_ours_is_reported_as_it_is() -> None:
    failure = CheckpointError("weights are gone")
    with pytest.raises(CheckpointError, match=r"^weights are gone$"):
        fit(FailingTrainer(failure))  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_session")
def test_another_error_is_reported_in_a_line() -> None:
    failure = ValueError("first line\nsecond line")
    with pytest.raises(IncompleteError, match=r"^the workers failed \(.*CPUs are free.*ValueError: first line second"):
        fit(FailingTrainer(failure))  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("failure", "attempts"),
    [
        (CheckpointError("the store does not answer"), 3),
        (ValueError("killed"), 3),
        (OtherModelError("another teacher"), 1),
        (ConfigError("no GPU"), 1),
        (ControllerError(RuntimeError("workers did not start")), 1),
    ],
)
def test_only_failures_that_may_not_repeat_are_tried_again(
    failure: Exception, attempts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[FailingTrainer] = []

    def make() -> Any:
        made.append(FailingTrainer(failure))
        return made[-1]

    with pytest.raises(PipelineError):
        fit_again(make, 2)
    assert len(made) == attempts
    assert capsys.readouterr().err.count("; trying again, ") == attempts - 1


def test_state_is_kept_under_the_output(tmp_path: Path) -> None:
    config = run_config(str(tmp_path / "train"), "name", WorkersConfig(max_failures=2, start_timeout_s=900))
    assert (config.storage_path, config.storage_filesystem) == (str(tmp_path / "train"), None)
    assert config.failure_config is not None
    assert config.failure_config.max_failures == 0


@pytest.mark.parametrize(("start_timeout_s", "minutes"), [(1, 1), (60, 1), (61, 2), (900, 15)])
def test_ray_is_asked_again_each_minute(tmp_path: Path, start_timeout_s: int, minutes: int) -> None:
    config = run_config(str(tmp_path), "name", WorkersConfig(start_timeout_s=start_timeout_s))
    assert config.failure_config is not None
    assert config.failure_config.controller_failure_limit == minutes - 1


def test_state_is_kept_at_any_location() -> None:
    config = run_config("memory://bucket/train", "name", WorkersConfig())
    assert config.storage_path == "/bucket/train"
    assert isinstance(config.storage_filesystem, pyarrow.fs.PyFileSystem)


@pytest.mark.usefixtures("ray_session")
def test_more_workers_than_a_machine_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 workers with 1 CPU each, and there are 4 CPUs"):
        worker_configs(WorkersConfig(size=5, device="cpu"), fixed_size=True)
    with pytest.raises(ConfigError, match="3 workers with 1 GPU each, and there are 2 GPUs"):
        worker_configs(WorkersConfig(size=3), fixed_size=True)
    scaling, torch_config = worker_configs(WorkersConfig(size=5, device="cpu"), fixed_size=False)
    assert (scaling.num_workers, scaling.use_gpu, torch_config.backend) == (5, False, "gloo")


def test_the_first_version_of_ray_train_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    with pytest.raises(ConfigError, match=r"RAY_TRAIN_V2_ENABLED is '0', and workers need Ray Train V2: unset it"):
        worker_configs(WorkersConfig(device="cpu"), fixed_size=True)
