"""Copies of training images are found, strangers are as near to both sides, and only kept patches count."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.privacy import (
    DescribedImages,
    Describer,
    PrivacyConfig,
    balanced,
    compare,
    measure,
    pixel_distances,
    wilson,
)
from pipeline.config import from_dict
from pipeline.dataset import schema, write_images
from pipeline.errors import ConfigError
from pipeline.models import ModelConfig, load_model

NAMES = [f"class {letter}" for letter in "abcdefghij"]
COUNT = 60


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)


def make_config(teacher: Path, folder: Path, synthetic: np.ndarray, keep: list[int]) -> PrivacyConfig:
    """Images that keep some patches, and real ones of two kinds with labels."""
    ids = [str(row) for row in range(COUNT)]
    columns = {
        "image": schema.image_column(list(synthetic), ids),
        "label": [row % 10 for row in range(COUNT)],
        "keep_indices": [keep] * COUNT,
        "image_id": ids,
    }
    table = pa.table(columns, schema=schema.arrow_schema(NAMES, columns=list(columns)))
    (folder / "synthetic.parquet").write_bytes(schema.to_parquet(table))
    values: dict[str, Any] = {
        # Without a crop, the teacher reads real images pixel by pixel.
        "teacher": {"name": f"local-dir:{teacher}", "crop_pct": 1.0},
        "images": f"{folder}/synthetic.parquet",
    }
    for seed, name in enumerate(("train", "held_out"), 1):
        values[name] = f"{folder}/{name}.parquet"
        write_images(values[name], noise(seed), [row % 10 for row in range(COUNT)], NAMES)
    return from_dict(PrivacyConfig, values)


def test_copies_of_training_images_are_found_by_their_kept_patches(tiny_folder: Path, tmp_path: Path) -> None:
    copies = noise(1)
    # The patch in the first corner is not kept, and differs.
    copies[:, :8, :8] = 0
    figures = measure(make_config(tiny_folder, tmp_path, copies, list(range(1, 16))))
    assert (figures["images"], figures["real_images_of_each_kind"]) == (COUNT, COUNT)
    assert figures["pixels"]["nearer_to_train"] == 1
    assert figures["pixels"]["smallest_to_any_train"] < 1e-3
    assert figures["features"]["nearer_to_train"] > 0.8


def test_strangers_are_as_near_to_one_side_as_to_the_other(tiny_folder: Path, tmp_path: Path) -> None:
    figures = measure(make_config(tiny_folder, tmp_path, noise(7), list(range(16))))
    for space in ("pixels", "features"):
        low, high = figures[space]["interval_95"]
        assert low < 0.5 < high
        assert figures[space]["median_ratio"] == pytest.approx(1, abs=0.1)


def test_features_are_those_that_enter_the_classifier(tiny_folder: Path) -> None:
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    describer, images = Describer(loaded), np.random.default_rng(0).standard_normal((3, 3, 32, 32))
    keep = [[0, 3], [1, 2, 5], [4, 6]]
    tensor = torch.from_numpy(images).float()
    described = describer.describe(tensor, keep, [0, 1, 2])
    assert described.features.shape == (3, 32)
    assert np.linalg.norm(described.features, axis=1) == pytest.approx([1, 1, 1])
    alone = describer.describe(tensor[1:2], keep[1:2], [1])
    assert described.features[1] == pytest.approx(alone.features[0], abs=1e-5)
    assert described.kept.sum(axis=1).tolist() == [2 * 64 * 3, 3 * 64 * 3, 2 * 64 * 3]


def test_distances_count_kept_pixels_alone() -> None:
    labels = np.zeros(1, np.int64)
    image = DescribedImages(np.array([[0.5, 1.0]]), np.array([[1.0, 0.0]]), np.zeros((1, 1)), labels)
    real = DescribedImages(
        np.array([[0.25, 0.0], [1.0, 1.0]]), np.ones((2, 2)), np.zeros((2, 1)), np.zeros(2, np.int64)
    )
    assert pixel_distances(image, real).tolist() == [0.25]


def test_both_sides_have_equally_many_images_of_each_class() -> None:
    def of(labels: list[int]) -> DescribedImages:
        return DescribedImages(*(np.zeros((len(labels), 1)),) * 3, np.array(labels))  # type: ignore[arg-type]

    config = PrivacyConfig(teacher=ModelConfig(name="x"), images="i")
    sides = balanced(of([0, 0, 0, 1, 2]), of([0, 1, 1, 1, 3]), config)
    assert [sorted(side.labels.tolist()) for side in sides] == [[0, 1], [0, 1]]
    with pytest.raises(ConfigError, match="no class in common"):
        balanced(of([0]), of([1]), config)


def test_equal_distances_count_half_and_the_interval_is_wilsons() -> None:
    figures = compare(np.array([1.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0, 4.0]), np.array([1.0, 0.5, 2.0, 3.0]))
    assert figures["nearer_to_train"] == 0.5
    assert (figures["median_ratio"], figures["smallest_to_any_train"]) == (1.0, 0.5)
    assert wilson(0.5, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)


def test_train_and_held_out_go_together() -> None:
    with pytest.raises(ConfigError, match="go together"):
        PrivacyConfig(teacher=ModelConfig(name="x"), images="i", train="t")
