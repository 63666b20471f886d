"""Training on images that are being made."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml

from pipeline.cluster.autoscaler import NodeType, NodeTypes
from pipeline.dataset import rows, store
from pipeline.dataset.collection import ImageCollection
from pipeline.dataset.part_files import part_name
from pipeline.distillation import DistillationConfig, StudentConfig, WeightedImages, distill
from pipeline.distillation.arriving import Arriving, ArrivingImages, mix_in_buffer
from pipeline.distillation.images import concatenate
from pipeline.distillation.loop import StudentTrainer
from pipeline.distillation.order import Share
from pipeline.distillation.plan import plan_distillation
from pipeline.distillation.run import _train_with
from pipeline.distillation.state import TrainingState
from pipeline.errors import ConfigError, DatasetError, IncompleteError, MissingImagesError
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.quantization import CalibrationConfig, calibrate
from pipeline.synthesis import arrivals as arrivals_module
from pipeline.synthesis import background, capacity, synthesize
from pipeline.synthesis.arrivals import PartArrivals, expected_parts
from pipeline.synthesis.background import Synthesis, background_synthesis, has_room
from pipeline.synthesis.exit_code import ExitCode
from pipeline.synthesis.input_synthesis import names_config, plan_images, planned_images
from pipeline.synthesis.writer import PartWriter
from pipeline.workers import WorkersConfig
from pipeline.workers.training import resources_of
from tests.distillation.conftest import make_images
from tests.distillation.test_loop import make_trainer
from tests.distillation.test_run import checksum, metrics
from tests.synthesis.test_actor import nan_teacher

NUM_IMAGES = 24


@pytest.fixture
def synthesis(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "teacher": {"name": f"local-dir:{tiny_folder}"},
        "output": str(tmp_path / "images"),
        "classes": "0-5",
        "images_per_class": 4,
        "shard_size": 4,
        "inversion": {"iterations": 4, "stop_steps": [2], "stop_fractions": [0.5]},
        "pool": {"device": "cpu"},
    }


def write(synthesis: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "synthesis.yaml"
    path.write_text(yaml.safe_dump(synthesis))
    return str(path)


def test_the_config_of_images_is_named_when_it_lacks_a_setting(synthesis: dict[str, Any], tmp_path: Path) -> None:
    del synthesis["output"]
    with pytest.raises(ConfigError, match=r"^images: '.*synthesis\.yaml', .*these settings must be given: output$"):
        plan_images(write(synthesis, tmp_path))


def training(images: Any, tiny_folder: Path, output: Path, **changes: Any) -> DistillationConfig:
    values: dict[str, Any] = {
        "teacher": ModelConfig(name=f"local-dir:{tiny_folder}"),
        "student": StudentConfig(depth_pruned=[1]),
        "images": images,
        "output": str(output),
        "epochs": 2,
        "batch_size": 6,
        "shuffle_buffer": 8,
        "workers": WorkersConfig(size=0, device="cpu"),
    }
    return DistillationConfig(**{**values, **changes})


def share_of_one(planned: ImageCollection, loaded: LoadedModel, *, in_memory: bool = True) -> ArrivingImages:
    """The share of a training's only worker, which is all images."""
    arriving = Arriving(planned, in_memory, patience_s=1.0)
    return ArrivingImages(arriving, loaded, Share(batch_size=4, seed=0, shuffle_buffer=8), labels=False)


def check_epochs(output: Path) -> None:
    ids = [f"{label:05d}-{number:06d}" for label in range(6) for number in range(4)]
    epochs = metrics(str(output))
    assert [(row["images"], row["image_ids_checksum"]) for row in epochs] == [(NUM_IMAGES, checksum(ids))] * 2


@pytest.mark.usefixtures("ray_session")
def test_workers_train_on_images_as_they_are_made(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers, synthesis_path = WorkersConfig(size=2, device="cpu"), write(synthesis, tmp_path)
    with caplog.at_level("INFO", logger="sparse_inversion"):
        result = distill(training(synthesis_path, tiny_folder, tmp_path / "out", workers=workers))
    assert f"training on the images of {synthesis['output']!r} as they are made" in caplog.text
    check_epochs(tmp_path / "out")
    assert len(set(result["weights_sha256"])) == 1
    digest = store.read_manifest(synthesis["output"])["digest"]
    assert store.read_progress(synthesis["output"], 6, digest).complete
    # Whenever the parts came, as if they had been there before.
    there = distill(training(synthesis_path, tiny_folder, tmp_path / "there", workers=workers))
    assert there["weights_sha256"] == result["weights_sha256"]


@pytest.mark.usefixtures("ray_session")
def test_a_training_waits_where_there_is_no_room_for_both_and_reads_images_in_the_same_order_again(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    synthesis["pool"]["max_size"] = 5
    path = write(synthesis, tmp_path)
    with caplog.at_level("INFO", logger="sparse_inversion"):
        first = distill(training(path, tiny_folder, tmp_path / "first"))
    expected = (
        "4 actors of the synthesis and the training workers need 5 CPUs, the cluster has at most 4: the training "
        "starts once all images are made (with pool.max_size 3 both run at once)"
    )
    assert expected in caplog.text
    check_epochs(tmp_path / "first")
    second = distill(training(path, tiny_folder, tmp_path / "second"))
    assert second["weights_sha256"] == first["weights_sha256"]
    # From the second epoch on streamed, for they do not fit.
    distill(training(path, tiny_folder, tmp_path / "anew", cache_gb=0.0))
    check_epochs(tmp_path / "anew")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("actors", [1, 5], ids=["beside", "first"])
def test_a_shard_that_fails_ends_the_training(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, actors: int
) -> None:
    synthesis["teacher"]["name"] = f"local-dir:{nan_teacher(tmp_path / 'teacher')}"
    # For five and the worker there is no room: the images are made first.
    synthesis["pool"]["max_size"] = actors
    config = training(write(synthesis, tmp_path), tiny_folder, tmp_path / "out")
    expected = r"shard 4 of '.*images' failed: .*class_loss is not finite.*\. Run this job again to retry it, or make"
    with (
        caplog.at_level("INFO", logger="sparse_inversion"),
        pytest.raises(MissingImagesError, match=expected),
    ):
        distill(replace(config, workers=WorkersConfig(device="cpu")))
    assert "trying again" not in caplog.text


@pytest.mark.usefixtures("ray_session")
def test_the_images_of_a_calibration_are_made_first(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A size of its own, of which a note tells.
    synthesis["teacher"]["model_args"] = {"img_size": 24}
    config = CalibrationConfig(
        teacher=ModelConfig(name=f"local-dir:{tiny_folder}", model_args={"img_size": 24}),
        images=write(synthesis, tmp_path),
        output=str(tmp_path / "out"),
        formats=["pt2"],
        workers=WorkersConfig(size=0, device="cpu"),
    )
    with pytest.raises(DatasetError, match="nowhere"):
        calibrate(replace(config, labeled=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="images_split is 'train'"):
        calibrate(replace(config, images_split="train"))
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot write to"):
        calibrate(replace(config, output=str(tmp_path / "file" / "out")))
    assert not Path(synthesis["output"]).exists()
    caplog.clear()
    with caplog.at_level("INFO", logger="sparse_inversion"):
        assert calibrate(config)["images"] == NUM_IMAGES
    (note,) = [line for line in caplog.messages if line.startswith("note: ")]
    assert "24" in note
    # Another calibration is refused before the images of its own are made.
    synthesis["output"] = str(tmp_path / "others")
    with pytest.raises(DatasetError, match="holds"):
        calibrate(replace(config, images=write({**synthesis, "seed": 1}, tmp_path)))
    assert not Path(synthesis["output"]).exists()


@pytest.mark.usefixtures("ray_session")
def test_the_process_that_makes_images_ends_with_the_training(
    synthesis: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(path: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[0]

    monkeypatch.setattr(background, "_start", start)
    to_make = plan_images(write(synthesis, tmp_path))
    with (
        pytest.raises(KeyboardInterrupt),
        expected_parts(to_make) as arrivals,
        background_synthesis(to_make, arrivals),
    ):
        raise KeyboardInterrupt
    assert started[0].poll() is not None
    to_make = plan_images(write({**synthesis, "pool": {"device": "cpu", "min_size": 9, "max_size": 9}}, tmp_path))
    too_small = pytest.raises(ConfigError, match=r"pool\.min_size 6 with 1 CPUs .* the cluster has room for 4")
    with too_small, expected_parts(to_make) as arrivals, background_synthesis(to_make, arrivals):
        pass
    assert len(started) == 1


def test_a_process_that_does_not_stop_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "_STOP_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        background._stop(process)
    assert process.returncode == -signal.SIGKILL
    assert "the synthesis did not stop within 0.2 s: it is killed" in caplog.text


@pytest.mark.usefixtures("ray_session")
def test_the_process_that_makes_images_ends_when_the_training_is_gone_and_is_no_job_of_the_working_folder(
    synthesis: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise SystemExit(7)")
    path = write(synthesis, tmp_path)
    monkeypatch.chdir(tmp_path)
    process = background._start(path)
    assert os.getpgid(process.pid) == process.pid
    # As the system does where this process is killed.
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait() == 128 + signal.SIGTERM
    assert "stopped: " in capfd.readouterr().err


@pytest.mark.usefixtures("ray_session")
def test_a_part_is_waited_for_until_the_synthesis_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals_module, "_LAST_LOOK_S", 0.1)
    monkeypatch.setattr(arrivals_module, "_LIST_EVERY_S", 0.1)
    ending: Any = ray.remote(num_cpus=0)(ExitCode).remote()
    part, other = (tmp_path / part_name(shard_id, "0" * 64) for shard_id in (3, 4))
    store.write_failure(str(tmp_path), 3, {"reason": "a full disk, of an earlier run"})
    arrivals = PartArrivals(str(tmp_path), ending, {3: {"shard_id": 3, "reason": "a full disk, of an earlier run"}})

    @ray.remote(num_cpus=1)
    def write_later() -> None:
        time.sleep(1.5)
        part.touch()

    write_later.remote()
    arrivals.wait_for(str(part))
    assert part.exists()
    # While the synthesis goes on, another shard fails, that one or one that failed before.
    for shard_id in (3, 7):
        store.write_failure(str(tmp_path), shard_id, {"reason": "NaN"})
        with pytest.raises(MissingImagesError, match=rf"shard {shard_id} of .* failed: NaN\. Run this job") as raised:
            arrivals.wait_for(str(other))
        store.remove_failure(str(tmp_path), shard_id)
    ray.get(ending.set.remote(0))
    with pytest.raises(MissingImagesError, match=r"the images of .* are made, but .*00004.* is not there: is that a"):
        arrivals.wait_for(str(other))
    ray.get(ending.set.remote(-9))
    with pytest.raises(MissingImagesError, match=r"ended with exit code -9 and without .*00004"):
        arrivals.wait_for(str(other))
    # Workers that are started again would wait in vain.
    assert not pickle.loads(pickle.dumps(raised.value)).is_transient  # noqa: S301
    ray.kill(ending)


@pytest.mark.usefixtures("open_cluster")
def test_an_autoscaler_has_room_for_what_it_can_bring_at_most(
    synthesis: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesis["pool"]["max_size"] = 5
    to_make = plan_images(write(synthesis, tmp_path))
    for brought, others, expected in (
        (None, 100, True),
        (NodeTypes(), 0, True),
        (NodeTypes(), 1, False),
        (NodeTypes([NodeType({"CPU": 2.0}, 3)]), 1, True),
        (NodeTypes([NodeType({"CPU": 2.0}, 3)]), 2, False),
        # Two types of which the launcher allows three nodes in all.
        (NodeTypes([NodeType({"CPU": 2.0}, 3), NodeType({"CPU": 2.0}, 3)], max_nodes=3), 2, False),
    ):
        for module in (background, capacity):
            monkeypatch.setattr(module, "node_types", lambda brought=brought: brought)
        assert has_room(to_make, {"CPU": others}) is expected


@pytest.mark.usefixtures("ray_session")
def test_a_training_that_cannot_start_beside_its_synthesis_begins_again_when_that_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ending: Any = ray.remote(num_cpus=0)(ExitCode).remote()
    arrivals, tried = PartArrivals(str(tmp_path), ending, {}), []

    def train() -> list[str]:
        tried.append(synthesis.runs)
        if synthesis.runs:
            raise IncompleteError("the workers failed (0 of 4 GPUs are free)")
        return ["digest"]

    synthesis = Synthesis(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"]), arrivals)
    assert _train_with(synthesis, train, beside=True) == ["digest"]
    assert tried == [True, False]
    assert "the training begins again when all images are made" in caplog.text
    synthesis = Synthesis(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]), arrivals)
    with pytest.raises(MissingImagesError, match=r"ended with exit code 3; its log lines say why"):
        _train_with(synthesis, train, beside=False)
    assert len(tried) == 2
    ray.kill(ending)


def test_a_job_that_works_in_its_own_process_takes_cores_too() -> None:
    assert resources_of(WorkersConfig(size=0, cpus_per_worker=2, device="cpu")) == {"CPU": 2.0}


@pytest.mark.usefixtures("ray_session")
def test_what_failed_since_the_plan_is_tried_again_and_does_not_end_the_training(
    synthesis: dict[str, Any], tmp_path: Path
) -> None:
    """A run that waited for another of the same output was planned before that one failed."""
    to_make = plan_images(write(synthesis, tmp_path))
    store.write_failure(synthesis["output"], 2, {"error": "NonFiniteError", "reason": "NaN"})
    with expected_parts(to_make) as arrivals:
        assert arrivals is not None
        arrivals.check_failed()


def test_planned_images_are_those_that_will_be_made(synthesis: dict[str, Any], tmp_path: Path) -> None:
    to_make = plan_images(write(synthesis, tmp_path))
    images = planned_images(to_make)
    assert images.num_rows == NUM_IMAGES
    # Shards hold a class each, and come in another order than the classes.
    names = [unit.name for _, unit in images.units]  # type: ignore[union-attr]
    assert sorted(names) == [unit.name for unit in images.sources[0].units] != names  # type: ignore[union-attr]
    assert not Path(synthesis["output"]).exists()


def test_a_config_is_told_from_a_dataset_and_stands_alone() -> None:
    assert names_config("made.YAML")
    assert not names_config("s3://bucket/images")
    assert not names_config(["a", WeightedImages(uri="b")])
    for listed in (["a", "made.yml"], [WeightedImages(uri="made.yml")]):
        with pytest.raises(ConfigError, match=r"images names the synthesis config 'made\.yml' in a list"):
            names_config(listed)


def test_what_makes_no_images_or_cannot_be_split_is_refused(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    path = write(synthesis, tmp_path)
    with pytest.raises(ConfigError, match=r"images names the synthesis config '.*synthesis\.yaml' in a list"):
        distill(training([path, str(tmp_path)], tiny_folder, tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"allow_incomplete is set, and which images '.*synthesis\.yaml' will fail"):
        distill(training(path, tiny_folder, tmp_path / "out", allow_incomplete=True))
    with pytest.raises(ConfigError, match="images_split is 'train'"):
        distill(training(path, tiny_folder, tmp_path / "out", images_split="train"))
    path = write({**synthesis, "dry_run": True}, tmp_path)
    with pytest.raises(ConfigError, match="has dry_run, with which no images are made"):
        distill(training(path, tiny_folder, tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        distill(training(str(tmp_path / "nowhere.yaml"), tiny_folder, tmp_path / "out"))
    store.write_failure(synthesis["output"], 2, {"reason": "NaN"})
    path = write({**synthesis, "retry_failed": False}, tmp_path)
    with pytest.raises(ConfigError, match=r"has retry_failed false, and '.*images' lacks shards that .* \(2\)"):
        distill(training(path, tiny_folder, tmp_path / "out"))


@pytest.mark.parametrize("buffer", [0, 1, 6])
@pytest.mark.parametrize("sizes", [[3], [5, 1, 4, 9, 2], [1] * 20])
def test_a_buffer_mixes_neighbors_and_loses_none(sizes: list[int], buffer: int) -> None:
    whole, start, parts = make_images(sum(sizes)), 0, []
    for size in sizes:
        part, start = whole.take(np.arange(start, start + size)), start + size
        # Parts keep different numbers of patches at most.
        parts.append(replace(part, keep_indices=part.keep_indices[:, : part.num_kept.max()]))
    given = [part.take(np.arange(len(part))) for part in mix_in_buffer(parts, buffer, np.random.default_rng(0))]
    mixed = concatenate(given)
    assert sorted(mixed.image_ids) == whole.image_ids
    if buffer > 1 and len(mixed) > 3:
        assert mixed.image_ids != whole.image_ids
    back = mixed.take(np.argsort(mixed.image_ids))
    for name in ("pixels", "labels", "num_kept"):
        assert np.array_equal(getattr(back, name), getattr(whole, name))
    for own, expected, kept in zip(back.keep_indices, whole.keep_indices, whole.num_kept, strict=True):
        assert np.array_equal(own[:kept], expected[:kept])


@pytest.mark.usefixtures("ray_session")
def test_a_training_that_stopped_while_images_were_made_goes_on_within_its_epoch(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_make = plan_images(write(synthesis, tmp_path))
    synthesize(to_make.plan.config)
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))

    def make(output: Path) -> StudentTrainer:
        images = share_of_one(planned_images(to_make), loaded)
        return make_trainer(loaded, output, arriving=images, checkpoint_minutes=1e-9, epochs=2)

    untouched, stopped = make(tmp_path / "untouched"), make(tmp_path / "stopped")
    digests, step = untouched.train(), stopped._step

    def stop_in_the_first_epoch(batch: Any, state: TrainingState) -> Any:
        if state.steps == 3:
            raise KeyboardInterrupt
        return step(batch, state)

    monkeypatch.setattr(stopped, "_step", stop_in_the_first_epoch)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("*step*")]
    assert make(tmp_path / "stopped").train() == digests
    # One that goes on after its first epoch waits for a part that is made again.
    ending: Any = ray.remote(num_cpus=0)(ExitCode).remote()
    arrivals = PartArrivals(to_make.plan.config.output, ending, {})
    Path(store.part_uri(to_make.plan.config.output, 3, to_make.plan.digest)).unlink()
    planned = ImageCollection.of(replace(planned_images(to_make).sources[0], arrivals=arrivals))
    images = share_of_one(planned, loaded)
    thread = Thread(target=synthesize, args=(to_make.plan.config,))
    thread.start()
    assert sum(len(batch.image_ids) for batch in images.batches(1, torch.device("cpu"))) == NUM_IMAGES
    thread.join()
    ray.kill(ending)


def test_the_record_says_that_images_were_read_as_made(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    plan = plan_distillation(training(write(synthesis, tmp_path), tiny_folder, tmp_path / "out"))
    facts = plan.document["identity"]
    assert facts["as_made"] is True
    assert facts["dataset"] == plan.to_make.plan.digest  # type: ignore[union-attr]


def test_the_order_says_how_later_epochs_are_read(synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    planned = planned_images(plan_images(write(synthesis, tmp_path)))
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    # A checkpoint within an epoch counts in its own order alone.
    orders = {share_of_one(planned, loaded, in_memory=in_memory).order for in_memory in (True, False)}
    assert len(orders) == 2


def test_the_order_does_not_depend_on_how_parts_are_cut_into_tables(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_make = plan_images(write(synthesis, tmp_path))
    writer = PartWriter(to_make.plan.config, to_make.plan.digest)
    for shard in to_make.plan.shards:
        assert writer.write_shard(shard["shard_id"], shard["labels"], shard["image_ids"]).error == ""
    planned = planned_images(to_make)
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))

    def read() -> list[str]:
        images = share_of_one(planned, loaded)
        return [image_id for batch in images.batches(0, torch.device("cpu")) for image_id in batch.image_ids]

    whole = read()
    monkeypatch.setattr(rows, "_ROWS_AT_ONCE", 3)
    assert read() == whole
    assert len(set(whole)) == NUM_IMAGES
