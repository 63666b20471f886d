"""Storage, resources and errors of Ray Train runs."""

import errno
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import CheckpointError, ConfigError, DatasetError, IncompleteError, OtherModelError, PipelineError
from pipeline.workers import WorkersConfig
from pipeline.workers.training import fit, fit_with_retries, run_config, run_workers, worker_configs


def sent(error: PipelineError, cause: Exception) -> PipelineError:
    """An error of a worker, as it comes to the driver."""
    error.__cause__ = cause
    return pickle.loads(pickle.dumps(error))  # noqa: S301


class FailingTrainer:
    """Stands for a trainer whose workers failed, which takes Ray Train ten seconds to find out."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure
        self.failures = {1: failure}

    def fit(self) -> None:
        if isinstance(self.failure, ControllerError):
            raise self.failure
        raise WorkerGroupError("workers failed", self.failures)


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
        (sent(CheckpointError("the store does not answer"), ConnectionError()), 3),
        (sent(DatasetError("cannot read"), OSError(errno.EIO, "Input/output error")), 3),
        (IncompleteError("a task was lost"), 3),
        (sent(DatasetError("cannot read"), FileNotFoundError(errno.ENOENT, "gone")), 1),
        (DatasetError("not a whole Parquet file"), 1),
        (CheckpointError("no safetensors file"), 1),
        (ValueError("killed"), 3),
        (OtherModelError("another teacher"), 1),
        (ConfigError("no GPU"), 1),
        (ControllerError(RuntimeError("workers did not start")), 1),
        (ControllerError(ActorDiedError()), 3),
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
        fit_with_retries(make, 2)
    assert len(made) == attempts
    assert capsys.readouterr().err.count("; trying again, ") == attempts - 1


@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_was_killed_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "begun"

    def work() -> str:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    workers = WorkersConfig(device="cpu", max_failures=1)
    resources = worker_configs(workers)
    # What a user keeps there, such as the images to train on, is not Ray Train's.
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "bird.png").write_bytes(b"photo")
    assert run_workers(work, workers, resources, output=str(tmp_path / "out"), name="killed") == "done"
    assert [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")] == [
        "train",
        "train/bird.png",
    ]
    assert capsys.readouterr().err.count("; trying again, 1 of 1 failures left\n") == 1


@pytest.mark.usefixtures("ray_session")
def test_of_errors_of_several_workers_one_that_would_come_again_is_reported() -> None:
    failures = {0: IncompleteError("a worker was lost"), 1: ValueError("closed"), 2: DatasetError("damaged")}
    trainer = FailingTrainer(DatasetError())
    trainer.failures = failures
    with pytest.raises(DatasetError, match=r"^damaged$"):
        fit(trainer)  # type: ignore[arg-type]


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
def test_more_workers_than_a_machine_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"workers\.size 5 needs 5 CPUs, 1 for each, and the cluster has 4"):
        worker_configs(WorkersConfig(size=5, device="cpu"))
    with pytest.raises(ConfigError, match=r"workers\.size 3 needs 3 GPUs, 1 for each, and the cluster has 2"):
        worker_configs(WorkersConfig(size=3))
    monkeypatch.setattr("pipeline.workers.training.ray.cluster_resources", lambda: {"CPU": 4.0})
    advice = "the cluster has 0; without GPUs, set workers.device to cpu$"
    with pytest.raises(ConfigError, match=f"workers.size 1 needs 1 GPUs, 1 for each, and {advice}"):
        worker_configs(WorkersConfig(device="cuda"))


@pytest.mark.usefixtures("open_cluster")
def test_where_nodes_may_join_more_workers_than_fit_wait_for_them() -> None:
    scaling, torch_config = worker_configs(WorkersConfig(size=5, device="cpu"))
    assert (scaling.num_workers, scaling.use_gpu, torch_config.backend) == (5, False, "gloo")


def test_the_first_version_of_ray_train_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    with pytest.raises(ConfigError, match=r"RAY_TRAIN_V2_ENABLED is '0', and workers need Ray Train V2: unset it"):
        worker_configs(WorkersConfig(device="cpu"))
