"""Training on images that are being made."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml

from pipeline.dataset import rows, store
from pipeline.distillation import DistillationConfig, StudentConfig, WeightedImages, distill
from pipeline.distillation.arriving import Arriving, ArrivingImages, mix
from pipeline.distillation.plan import plan_distillation
from pipeline.errors import ConfigError, DatasetError, IncompleteError
from pipeline.models import ModelConfig, load_model
from pipeline.quantization import CalibrationConfig, calibrate
from pipeline.synthesis import beside
from pipeline.synthesis.beside import PartArrivals, _Ending, making
from pipeline.synthesis.to_make import names_config, plan_images, planned_images
from pipeline.workers import WorkersConfig
from tests.distillation.conftest import make_images
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


def check_epochs(output: Path) -> None:
    ids = [f"{label:05d}-{number:06d}" for label in range(6) for number in range(4)]
    epochs = metrics(str(output))
    assert [(row["images"], row["image_ids_checksum"]) for row in epochs] == [(NUM_IMAGES, checksum(ids))] * 2


@pytest.mark.usefixtures("ray_session")
def test_workers_train_on_images_as_they_are_made(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = WorkersConfig(size=2, device="cpu")
    with caplog.at_level("INFO", logger="sparse_inversion"):
        result = distill(training(write(synthesis, tmp_path), tiny_folder, tmp_path / "out", workers=workers))
    assert f"training on the images of {synthesis['output']!r} as they are made" in caplog.text
    check_epochs(tmp_path / "out")
    assert len(set(result["weights_sha256"])) == 1
    digest = store.read_manifest(synthesis["output"])["digest"]
    assert store.read_progress(synthesis["output"], 6, digest).complete


@pytest.mark.usefixtures("ray_session")
def test_a_training_waits_where_there_is_no_room_for_both_and_reads_images_in_the_same_order_again(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    synthesis["pool"]["max_size"] = 5
    path = write(synthesis, tmp_path)
    with caplog.at_level("INFO", logger="sparse_inversion"):
        first = distill(training(path, tiny_folder, tmp_path / "first"))
    expected = (
        "5 actors of the synthesis and the workers of the training need 5 CPUs, and there are 4: the training begins "
        "when all images are made: with pool.max_size 4 both go on at once"
    )
    assert expected in caplog.text
    check_epochs(tmp_path / "first")
    second = distill(training(path, tiny_folder, tmp_path / "second"))
    assert second["weights_sha256"] == first["weights_sha256"]
    # From the second epoch on streamed, for they do not fit.
    distill(training(path, tiny_folder, tmp_path / "anew", cache_gb=0.0))
    check_epochs(tmp_path / "anew")


@pytest.mark.usefixtures("ray_session")
def test_a_synthesis_that_fails_ends_the_training(synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    synthesis["teacher"]["name"] = f"local-dir:{nan_teacher(tmp_path / 'teacher')}"
    with pytest.raises(IncompleteError, match=r"ended with exit code 1 and without .*its own lines say why"):
        distill(training(write(synthesis, tmp_path), tiny_folder, tmp_path / "out"))


@pytest.mark.usefixtures("ray_session")
def test_the_images_of_a_calibration_are_made_first(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    config = CalibrationConfig(
        teacher=ModelConfig(name=f"local-dir:{tiny_folder}"),
        images=write(synthesis, tmp_path),
        output=str(tmp_path / "out"),
        formats=["pt2"],
        workers=WorkersConfig(size=0, device="cpu"),
    )
    with pytest.raises(DatasetError, match="nowhere"):
        calibrate(replace(config, labeled=str(tmp_path / "nowhere")))
    assert not Path(synthesis["output"]).exists()
    assert calibrate(config)["images"] == NUM_IMAGES


@pytest.mark.usefixtures("ray_session")
def test_the_process_that_makes_images_ends_with_the_training(
    synthesis: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(path: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[0]

    monkeypatch.setattr(beside, "_start", start)
    with pytest.raises(KeyboardInterrupt), making(plan_images(write(synthesis, tmp_path)), first=False):
        raise KeyboardInterrupt
    assert started[0].poll() is not None


@pytest.mark.usefixtures("ray_session")
def test_a_part_is_waited_for_until_the_synthesis_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_LAST_LOOK_S", 0.1)
    ending: Any = ray.remote(num_cpus=0)(_Ending).remote()
    arrivals, part = PartArrivals(str(tmp_path), ending), tmp_path / "part"

    @ray.remote(num_cpus=1)
    def write_later() -> None:
        time.sleep(1.5)
        part.touch()

    write_later.remote()
    arrivals.wait_for(str(part))
    assert part.exists()
    ray.get(ending.set.remote(0))
    with pytest.raises(IncompleteError, match=r"the images of .* are made, and .*another.* is not there"):
        arrivals.wait_for(str(tmp_path / "another"))
    ray.get(ending.set.remote(-9))
    with pytest.raises(IncompleteError, match="ended with exit code -9"):
        arrivals.wait_for(str(tmp_path / "another"))
    ray.kill(ending)


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
    with pytest.raises(ConfigError, match="images_split is 'train'"):
        distill(training(path, tiny_folder, tmp_path / "out", images_split="train"))
    path = write({**synthesis, "dry_run": True}, tmp_path)
    with pytest.raises(ConfigError, match="has dry_run, with which no images are made"):
        distill(training(path, tiny_folder, tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        distill(training(str(tmp_path / "nowhere.yaml"), tiny_folder, tmp_path / "out"))


@pytest.mark.parametrize("sizes", [[3], [5, 1, 4, 9, 2], [1] * 20])
def test_a_buffer_mixes_neighbors_and_loses_none(sizes: list[int]) -> None:
    whole, start, parts = make_images(sum(sizes)), 0, []
    for size in sizes:
        parts.append(whole.take(np.arange(start, start + size)))
        start += size
    mixed = [image_id for part in mix(parts, 6, np.random.default_rng(0)) for image_id in part.image_ids]
    assert sorted(mixed) == whole.image_ids
    assert len(mixed) == 3 or mixed != whole.image_ids


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
    share: dict[str, Any] = {"labels": False, "batch_size": 4, "shuffle_buffer": 8, "seed": 0, "rank": 0}
    # A checkpoint within an epoch counts in its own order alone.
    orders = {
        ArrivingImages(Arriving(planned, in_memory, 1.0), loaded, world_size=1, **share).order
        for in_memory in (True, False)
    }
    assert len(orders) == 2


@pytest.mark.usefixtures("ray_session")
def test_the_order_does_not_depend_on_how_parts_are_cut_into_tables(
    synthesis: dict[str, Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(synthesis, tmp_path)
    distill(training(path, tiny_folder, tmp_path / "out"))
    planned = planned_images(plan_images(path))
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))

    def read() -> list[str]:
        images = ArrivingImages(
            Arriving(planned, True, 1.0),
            loaded,
            labels=False,
            batch_size=4,
            shuffle_buffer=8,
            seed=0,
            rank=0,
            world_size=1,
        )
        return [image_id for batch in images.batches(0, torch.device("cpu")) for image_id in batch.image_ids]

    whole = read()
    monkeypatch.setattr(rows, "_ROWS_AT_ONCE", 3)
    assert read() == whole
    assert len(set(whole)) == NUM_IMAGES
