"""The demo's teacher and images: disjoint sets, seeded augmentation, a model that timm and the pipeline load."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from examples.digits.teacher import (
    CLASS_NAMES,
    DigitsConfig,
    LabeledImages,
    augment,
    load_scans,
    main,
    make_digits,
    normalize,
    split_scans,
)
from pipeline.dataset import discovery, schema
from pipeline.errors import ConfigError
from pipeline.models import ModelConfig, RealImageTransform, load_model


@pytest.fixture(scope="module")
def scans() -> LabeledImages:
    return load_scans()


def rows(split: LabeledImages) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_scans_are_32_pixels_wide_and_use_the_whole_range(scans: LabeledImages) -> None:
    assert scans.images.shape == (1797, 32, 32, 1)
    assert scans.images.dtype == np.uint8
    assert (scans.images.min(), scans.images.max()) == (0, 255)
    assert set(scans.labels) == set(range(10))


def test_sets_are_disjoint_where_they_must_be(scans: LabeledImages) -> None:
    sets = split_scans(scans, held_out=500, images_per_class=20, seed=0)
    assert {name: len(split.labels) for name, split in sets.items()} == {
        "held_out": 500,
        "train": 1297,
        "real": 200,
        "reference": 200,
    }
    for name in ("real", "reference"):
        assert np.bincount(sets[name].labels).tolist() == [20] * 10
        assert rows(sets[name]) <= rows(sets["train"])
    assert not rows(sets["real"]) & rows(sets["reference"])
    assert not rows(sets["held_out"]) & rows(sets["train"])


def test_split_follows_the_seed(scans: LabeledImages) -> None:
    first, again, other = (split_scans(scans, held_out=500, images_per_class=20, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first["held_out"].images, again["held_out"].images)
    assert not np.array_equal(first["held_out"].images, other["held_out"].images)


def test_too_many_images_asked_for(scans: LabeledImages) -> None:
    with pytest.raises(ConfigError, match="held_out=1700 leaves"):
        split_scans(scans, held_out=1700, images_per_class=20, seed=0)


def test_augmentation_moves_pixels_little_and_is_seeded(scans: LabeledImages) -> None:
    images = normalize(scans.images[:64])
    first, again = (augment(images, noise=0.0, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.min() >= -1
    assert first.max() <= 1
    # What leaves on one side is black, so ink is hardly gained or lost but by scaling.
    ink = (first + 1).sum() / (images + 1).sum()
    assert 0.8 < ink < 1.2
    assert not torch.allclose(first, images, atol=0.1)
    noisy = augment(images, noise=0.2, generator=torch.Generator().manual_seed(3))
    assert 0.19 < (noisy - first).std() < 0.21


def test_folder_loads_in_timm_and_here_and_sets_are_datasets(tmp_path: Path) -> None:
    config = DigitsConfig(output=str(tmp_path), epochs=1, batch_size=256, held_out=500, images_per_class=5)
    result = make_digits(config)
    folder = f"local-dir:{tmp_path}/teacher"
    assert result["teacher"] == str(tmp_path / "teacher")
    assert timm.create_model(folder, pretrained=True).num_classes == 10
    loaded = load_model(ModelConfig(name=folder))
    assert loaded.class_names == CLASS_NAMES
    assert (loaded.mean, loaded.std, loaded.input_size) == ((0.5,), (0.5,), (1, 32, 32))

    held_out = discovery.find_source(str(tmp_path / "held_out.parquet"))
    assert held_out.num_rows == 500
    assert held_out.class_names == CLASS_NAMES
    assert discovery.find_source(str(tmp_path / "real.parquet")).num_rows == 50
    assert discovery.find_source(str(tmp_path / "reference.parquet")).num_rows == 50

    # The eval transform takes a 32×32 picture pixel by pixel.
    scan = load_scans().images[0]
    stored = schema.open_image(schema.encode_image(scan), "0")
    assert torch.allclose(RealImageTransform(loaded)(stored), normalize(scan[None])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "0"], "epochs must be positive, not 0"),
        (["--noise", "-1"], "noise must not be negative, not -1.0"),
        (["--epochz", "1"], "epochz"),
        (["--output", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", "unused", "--epochs", "1", *flags]) == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
