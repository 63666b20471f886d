"""Any number of workers: the same scales to the last bit, every image read once."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dataset.collection import find_images
from pipeline.errors import ConfigError, OtherModelError
from pipeline.models import ModelConfig, load_model
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.bit_widths import SmoothingName
from pipeline.quantization.distributed import Calibration, calibrate_ranges
from pipeline.quantization.observers import ObserverName
from pipeline.quantization.plan import plan_calibration
from pipeline.quantization.reading import iterate_inputs
from pipeline.workers import WorkersConfig, progress
from tests.distillation.conftest import write_ragged
from tests.quantization.test_refinement import check_equal_moments

# A prime: no number of workers but 1 divides it.
NUM_IMAGES = 23

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.01)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of which some keep 4 patches, some 7 and some all 16."""
    path = tmp_path_factory.mktemp("images") / "images.parquet"
    write_ragged(path, NUM_IMAGES)
    return str(path)


def calibrate(
    images: str | list[str], tiny_folder: Path, output: Path, workers: int, batch_size: int, **changes: Any
) -> Calibration:
    values = {"images": images, "output": str(output), "placement": "matmul", "batch_size": batch_size}
    config = CalibrationConfig(
        teacher=ModelConfig(name=f"local-dir:{tiny_folder}"),
        workers=WorkersConfig(size=workers, device="cpu"),
        **{**values, **changes},
    )
    return calibrate_ranges(plan_calibration(config))


@pytest.fixture(scope="module")
def alone(
    images: str, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> Callable[[int, SmoothingName], Calibration]:
    """Calibrations without workers, made once, with observers that count all values, and sums of inputs."""

    @cache
    def calibrated(batch_size: int, smoothing: SmoothingName) -> Calibration:
        settings = {"observer": "mse", "smoothing": smoothing, "rounding": "gptq"}
        return calibrate(images, tiny_folder, tmp_path_factory.mktemp("alone"), 0, batch_size, **settings)

    return calibrated


def counted(observer: Any) -> tuple[int, int, list[int]]:
    return observer.histogram.exponent, observer.histogram.first, observer.histogram.counts.tolist()


def check_equal_channels(calibration: Calibration, expected: Calibration) -> None:
    ours, theirs = calibration.channels, expected.channels
    assert ours is not None
    assert theirs is not None
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(a, b) for name in theirs for a, b in zip(ours[name], theirs[name], strict=True))


# Batches of 8 make 3 windows, so that one of two workers has more to read; one of 32 leaves the other none.
@pytest.mark.parametrize(
    ("workers", "batch_size", "observer", "smoothing"),
    [(1, 4, "min_max", "none"), (2, 8, "mse", "smooth_quant"), (2, 32, "percentile", "repq")],
)
def test_workers_agree_to_the_last_bit_read_every_image_once_and_say_how_far_they_have_come(
    workers: int,
    batch_size: int,
    observer: ObserverName,
    smoothing: SmoothingName,
    alone: Callable[[int, SmoothingName], Calibration],
    images: str,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = alone(batch_size, smoothing)
    capsys.readouterr()
    rounding = "gptq" if observer == "mse" else "nearest"
    settings = {"observer": observer, "smoothing": smoothing, "rounding": rounding}
    calibration = calibrate(images, tiny_folder, tmp_path, workers, batch_size, **settings)
    # Smoothing takes a pass of its own, and GPTQ another.
    passes = 1 + (smoothing != "none") + (rounding == "gptq")
    check_progress(capsys.readouterr().err, passes * NUM_IMAGES)

    differing = [name for name, bounds in calibration.ranges.items() if bounds != expected.ranges[name]]
    assert calibration.ranges.keys() == expected.ranges.keys()
    assert differing == []
    if observer == "mse":
        assert calibration.ranges_for(4) == expected.ranges_for(4) != expected.ranges
    if rounding == "gptq":
        assert calibration.moments is not None
        assert expected.moments is not None
        check_equal_moments(calibration.moments, expected.moments)
    else:
        assert calibration.moments is None
    if observer == "percentile":
        assert [counted(point) for point in calibration.observers.values()] == [
            counted(point) for point in expected.observers.values()
        ]
    if smoothing == "none":
        assert calibration.channels is None
    else:
        check_equal_channels(calibration, expected)
    assert len(calibration.image_ids) == workers
    assert sum(not part for part in calibration.image_ids) == (1 if batch_size == 32 else 0)
    read = [image_id for part in calibration.image_ids for image_id in part]
    assert sorted(read) == [f"images-{row:05d}" for row in range(NUM_IMAGES)]
    assert list(tmp_path.iterdir()) == []


def check_progress(reported: str, num_images: int) -> None:
    assert f"calibrate: {num_images} images to read\n" in reported
    assert re.search(rf"calibrate: \d+ of {num_images} images, [0-9.e+]+ images/s, \d+ s left\n", reported)


def test_a_worker_that_loads_other_weights_ends_the_calibration(
    images: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ModelConfig(name=f"local-dir:{tiny_folder}")
    workers = WorkersConfig(device="cpu", max_failures=1)
    config = CalibrationConfig(teacher=teacher, images=images, output=str(tmp_path / "out"), workers=workers)
    plan = plan_calibration(config)
    # As if the folder held something else by the time that the driver looked.
    plan = replace(plan, loaded=replace(plan.loaded, digest="0" * 64))
    with pytest.raises(OtherModelError, match=r"^teacher .* differs between the driver \(digest 00000000\)"):
        calibrate_ranges(plan)
    assert "trying again" not in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_a_calibration_without_workers_says_how_far_it_has_come(
    images: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate(images, tiny_folder, tmp_path, 0, 4)
    check_progress(capsys.readouterr().err, NUM_IMAGES)


def test_a_calibration_without_workers_computes_on_the_device_that_is_asked_for(
    images: str, tiny_folder: Path, tmp_path: Path
) -> None:
    config = CalibrationConfig(
        teacher=ModelConfig(name=f"local-dir:{tiny_folder}"),
        images=images,
        output=str(tmp_path),
        workers=WorkersConfig(size=0, device="cuda"),
    )
    plan = plan_calibration(config)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"^workers\.device is 'cuda', and this process sees no CUDA device$"):
            calibrate_ranges(plan)
        return
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert calibrate_ranges(plan).num_images == NUM_IMAGES
    assert torch.cuda.max_memory_allocated() > before
    assert next(plan.loaded.model.parameters()).device.type == "cpu"


@pytest.mark.parametrize(("rows_a_group", "workers"), [(5, 0), (320, 0), (320, 2)])
def test_what_artifacts_are_compared_on_is_one_image_of_each_thirty_second_of_the_dataset(
    rows_a_group: int, workers: int, tiny_folder: Path, tmp_path: Path
) -> None:
    """One class comes after another: the first 32 of 320 images are of one of ten."""
    path = tmp_path / "images.parquet"
    ids = write_ragged(path, 320, rows_a_group=rows_a_group)
    samples = calibrate(str(path), tiny_folder, tmp_path / "out", workers, 64).samples
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    pixels = {row["image_id"]: row["pixels"] for row in iterate_inputs(find_images(str(path)), loaded, ids)}
    rows = [next(n for n, name in enumerate(ids) if np.array_equal(pixels[name], own)) for own in samples]
    assert [row // 10 for row in rows] == list(range(32))
