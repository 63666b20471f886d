"""Any number of workers: the same scales to the last bit, every image read once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import ray.data

from pipeline.dataset import write_images
from pipeline.inputs import read_inputs
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.distributed import Calibration, calibrate_ranges

# A prime: no number of workers but 1 divides it.
NUM_IMAGES = 23

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel) -> str:
    uri = str(tmp_path_factory.mktemp("images") / "images.parquet")
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), np.uint8)
    labels = [number % 10 for number in range(NUM_IMAGES)]
    write_images(uri, pixels, labels, loaded.class_names, row_group_size=5)
    return uri


def rows(loaded: LoadedModel, images: str) -> ray.data.Dataset:
    """The images, of which some keep 5 patches, some 9 and some all 16."""

    def stop(row: dict[str, object]) -> dict[str, object]:
        kept = (5, 9, 16)[int(str(row["image_id"])[-2:]) % 3]
        return {**row, "keep_indices": list(range(16 - kept, 16))}

    return read_inputs(images, loaded).map(stop)


def calibrate(
    loaded: LoadedModel, images: str, tiny_folder: Path, output: Path, workers: int, batch_size: int
) -> Calibration:
    config = CalibrationConfig(
        teacher=ModelConfig(name=f"local-dir:{tiny_folder}"),
        images=images,
        output=str(output),
        placement="matmul",
        batch_size=batch_size,
        num_workers=workers,
        device="cpu",
    )
    return calibrate_ranges(config, rows(loaded, images), loaded, "0" * 64)


@pytest.fixture(scope="module")
def alone(
    loaded: LoadedModel, images: str, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Calibration]:
    """By batch size, the calibration without workers, made once."""

    @cache
    def calibrated(batch_size: int) -> Calibration:
        return calibrate(loaded, images, tiny_folder, tmp_path_factory.mktemp("alone"), 0, batch_size)

    return calibrated


# Batches of 8 make 3 windows, one for each worker at the most; batches of 16 make 2, so that a worker gets none.
@pytest.mark.parametrize(("workers", "batch_size"), [(1, 8), (3, 8), (3, 16)])
def test_workers_agree_to_the_last_bit_and_read_every_image_once(
    workers: int,
    batch_size: int,
    alone: Callable[[int], Calibration],
    loaded: LoadedModel,
    images: str,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    expected = alone(batch_size).ranges
    calibration = calibrate(loaded, images, tiny_folder, tmp_path, workers, batch_size)

    differing = [name for name, bounds in calibration.ranges.items() if bounds != expected[name]]
    assert calibration.ranges.keys() == expected.keys()
    assert differing == []
    assert len(calibration.image_ids) == workers
    assert sum(not part for part in calibration.image_ids) == (1 if batch_size == 16 else 0)
    read = [image_id for part in calibration.image_ids for image_id in part]
    assert sorted(read) == [row["image_id"] for row in rows(loaded, images).sort("image_id").iter_rows()]
    assert len(set(read)) == len(read) == NUM_IMAGES
    assert list(tmp_path.iterdir()) == []
