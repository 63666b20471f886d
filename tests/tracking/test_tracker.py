"""Reporting to TensorBoard and MLflow, and what becomes of a job where that is not possible."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import ConfigError, IncompleteError
from pipeline.tracking import event_folder
from pipeline.tracking import tracker as tracker_module
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import check_tracking, tracking
from tests.tracking.reading import read_scalars, read_texts

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra tensorboard")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow")
DIGEST = "deadbeef" * 8


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for what was reported, on however busy a machine."""
    monkeypatch.setattr(tracker_module, "_LAST_WAIT_S", 120.0)


SETTINGS = {
    "teacher": {"name": "vit", "checkpoint": "s3://key:hunter2secret@bucket/t"},
    "lr": 0.5,
    "classes": [1, 2],
    "tracking": {"mlflow": "http://me:topsecret1@host"},
}


@contextmanager
def reporting(config: TrackingConfig, steps: Mapping[int, Mapping[str, Any]]) -> Iterator[None]:
    """Check, report these steps and a result, and then do what the block does."""
    check_tracking(config)
    with tracking(config, "distill", DIGEST, SETTINGS) as tracker:
        for step, values in steps.items():
            tracker.add(step, values)
        yield
        tracker.set_result({"top1": 81.0, "before_top1": None, "student": "x", "complete": True})


@pytest.fixture(params=["local", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "tb") if request.param == "local" else f"memory://{tmp_path.name}/tb"


@needs_tensorboard
def test_tensorboard_reads_settings_figures_and_result(folder: str, tmp_path: Path) -> None:
    with reporting(TrackingConfig(tensorboard=folder), {1: {"loss": 0.5, "kl": float("nan")}, 2: {"loss": 0.25}}):
        pass
    run = storage.join(folder, "distill-deadbeef")
    assert read_scalars(run, tmp_path) == {"loss": [(1, 0.5), (2, 0.25)], "result/top1": [(2, 81.0)]}
    (text,) = read_texts(run, tmp_path)
    assert "| lr | `0.5` |" in text
    assert "| classes | `[1, 2]` |" in text
    assert "secret" not in text


@needs_tensorboard
def test_a_run_that_was_killed_goes_on_in_the_same_folder_without_doubled_steps(folder: str, tmp_path: Path) -> None:
    config = TrackingConfig(tensorboard=folder, run_name="mine")
    with pytest.raises(KeyboardInterrupt), reporting(config, {1: {"loss": 0.5}, 2: {"loss": 0.25}}):
        raise KeyboardInterrupt
    run = storage.join(folder, "mine")
    # The kill came in the middle of a write.
    (name,) = storage.list_files(run)
    storage.write_bytes(storage.join(run, name), storage.read_bytes(storage.join(run, name)) + b"\x50\0\0\0\0\0\0\0abc")
    time.sleep(1.1)  # the names of files go by seconds
    with reporting(config, {step: {"loss": 1 / step} for step in (1, 2, 3)}):
        pass
    found = read_scalars(run, tmp_path)
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    assert found["result/top1"] == [(3, 81.0)]
    assert len(read_texts(run, tmp_path)) == 1


@needs_tensorboard
def test_a_run_that_is_repeated_shows_its_last_result(folder: str, tmp_path: Path) -> None:
    """As a calibration is, which has no steps, or with `qat` the same ones each time.

    The figures are those of the artifacts that are there now.
    """
    for job, losses, first in (("calibrate", {}, 0), ("qat", {1: {"loss": 0.5}, 2: {"loss": 0.25}}, 2)):
        for top1 in (70.0, 72.0, 71.0):
            with tracking(TrackingConfig(tensorboard=folder), job, DIGEST, SETTINGS) as tracker:
                for step, values in losses.items():
                    tracker.add(step, values)
                tracker.set_result({"w8a8": {"onnx": {"top1": top1}}, "complete": True})
            time.sleep(1.1)  # the names of files go by seconds
        found = read_scalars(storage.join(folder, f"{job}-deadbeef"), tmp_path)
        assert found.pop("result/w8a8/onnx/top1") == [(first, 70.0), (first + 1, 72.0), (first + 2, 71.0)]
        assert [step for step, _ in found.pop("loss", [])] == [*losses]
        assert found == {}


@needs_tensorboard
def test_a_run_that_goes_on_after_its_result_shows_the_next_one_at_its_last_step(folder: str, tmp_path: Path) -> None:
    """As a training does that is given more epochs under the same name."""
    config = TrackingConfig(tensorboard=folder, run_name="one")
    for epochs, top1 in ((2, 70.0), (2, 71.0), (3, 72.0), (6, 73.0)):
        with tracking(config, "distill", DIGEST, SETTINGS) as tracker:
            for epoch in range(1, epochs + 1):
                tracker.add(epoch, {"loss": 1 / epoch})
            tracker.set_result({"top1": top1})
        time.sleep(1.1)  # the names of files go by seconds
    assert read_scalars(storage.join(folder, "one"), tmp_path)["result/top1"] == [
        (2, 70.0),
        (3, 71.0),
        (4, 72.0),
        (6, 73.0),
    ]


@needs_tensorboard
def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with reporting(TrackingConfig(tensorboard=str(tmp_path / "file")), {1: {"loss": 1.0}, 2: {"loss": 1.0}}):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: tracking: cannot report to TensorBoard's folder")
    assert ", giving up on it: " in line


@needs_mlflow
def test_mlflow_has_settings_figures_and_result_and_a_killed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    # The one store of the light package; a server is another process, with packages of its own.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = TrackingConfig(mlflow=f"file://{tmp_path}", mlflow_experiment="mine")
    with pytest.raises(KeyboardInterrupt), reporting(config, {1: {"loss": 0.5}, 2: {"loss": 0.25}}):
        raise KeyboardInterrupt
    client = MlflowClient(tracking_uri=config.mlflow)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (killed,) = client.search_runs([experiment.experiment_id])
    assert killed.info.status == "KILLED"
    with reporting(config, {step: {"loss": 1 / step} for step in (1, 2, 3)}):
        pass
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "distill-deadbeef")
    assert run.data.tags["sparse_inversion.digest"] == DIGEST
    assert run.data.params == {
        "teacher.name": "vit",
        "teacher.checkpoint": "s3://…@bucket/t",
        "lr": "0.5",
        "classes": "[1, 2]",
    }
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25), (3, 1 / 3)]
    assert run.data.metrics["result/top1"] == 81.0
    with pytest.raises(IncompleteError), reporting(config, {}):
        raise IncompleteError("x")
    assert client.get_run(run.info.run_id).info.status == "FAILED"


def test_steps_go_on_after_the_last_one_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    from tensorboardX import summary

    (tmp_path / "run").mkdir()
    for number, step in ((2, 5), (10, 40), (3, 8)):
        file = tmp_path / "run" / f"events.out.tfevents.0000000001.host.1.{number}"
        file.write_bytes(event_folder._event(step, summary.scalar("loss", float(step))))
    folder = event_folder.EventFolder(str(tmp_path), "run")
    folder.begin({})
    for step in (6, 40, 41):
        folder.add(step, {"loss": 0.0})
    assert sorted(event.step for event in event_folder._read_all(str(tmp_path / "run")) if event.step) == [5, 8, 40, 41]


@needs_mlflow
def test_a_server_that_is_not_there_costs_one_line_without_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    config = TrackingConfig(mlflow=f"http://me:correcthorse@127.0.0.1:{port}")
    with reporting(config, {step: {"loss": 1.0} for step in range(5)}):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: tracking: cannot report to MLflow at 'http://…@127.0.0.1")
    assert ", giving up on it: MlflowException: " in line
    assert "correcthorse" not in line


@needs_mlflow
def test_a_server_that_never_answers_does_not_hold_the_job_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "_LAST_WAIT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = TrackingConfig(mlflow=f"http://127.0.0.1:{server.getsockname()[1]}")
        check_tracking(config)
        with reporting(config, {1: {"loss": 1.0}}):
            pass
    assert "did not accept the last figures within 0 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tensorboard": "tb"}, r"tracking.tensorboard needs .* not installed: pip install '.\[tensorboard\]'"),
        ({"mlflow": "http://x"}, r"tracking.mlflow needs .* not installed: pip install '.\[mlflow\]'"),
    ],
)
def test_a_missing_package_is_refused_before_any_work(
    changes: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("event_folder", "mlflow_run"):
        monkeypatch.setattr(f"pipeline.tracking.{module}.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=line):
        check_tracking(TrackingConfig(**changes))


@needs_mlflow
def test_a_database_is_refused_where_only_the_light_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.mlflow_run._is_whole", lambda: False)
    started = "give the address of a server instead, started with `mlflow server --backend-store-uri sqlite"
    with pytest.raises(ConfigError, match=started):
        check_tracking(TrackingConfig(mlflow="sqlite:///mlflow.db"))


@pytest.mark.parametrize("name", ["", "../up", "a/b", "it's", "."])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.run_name must start with a letter, a digit or '_' and contain"):
        TrackingConfig(run_name=name)


def test_nothing_is_started_for_a_job_that_reports_nowhere() -> None:
    before = threading.active_count()
    with reporting(TrackingConfig(), {1: {"loss": 1.0}}):
        assert threading.active_count() == before
