"""The CIFAR-10 teacher: its training goes on where it was cut off, and the committed one is readable."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from benchmarks.cifar import CLASS_NAMES, MEAN, STD, augment, build_teacher, load_photos, main, mixup
from pipeline.models import ModelConfig, load_model

TEACHER = Path(__file__).parents[1] / "data" / "cifar_teacher"
SMALL = ("--width", "16", "--depth", "1", "--heads", "1", "--batch", "32", "--threads", "1", "--save-every", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Hugging Face lays CIFAR-10 out, of 60 random pictures a split."""
    folder = tmp_path_factory.mktemp("cifar")
    for seed, split in enumerate(("train", "test")):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
        files = [BytesIO() for _ in pixels]
        for file, image in zip(files, pixels, strict=True):
            Image.fromarray(image).save(file, "PNG")
        images = [{"bytes": file.getvalue(), "path": None} for file in files]
        pq.write_table(pa.table({"image": images, "label": [k % 10 for k in range(60)]}), folder / f"{split}.parquet")
    return folder


def test_pictures_are_read_as_they_were_written(data: Path) -> None:
    photos = load_photos(data, "train")
    written = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(photos.images.permute(0, 2, 3, 1).numpy(), written)
    assert photos.labels.tolist() == [k % 10 for k in range(60)]


def test_training_that_was_cut_off_ends_with_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(output: str) -> dict[str, torch.Tensor]:
        main(["teacher", "--data", str(data), "--output", str(tmp_path / output), "--epochs", "3", *SMALL])
        return torch.load(tmp_path / output / "checkpoint.pt", weights_only=True)["model"]

    whole = train("whole")
    # The second epoch is the last one that is saved before the power goes.
    save, saved = torch.save, []

    def fail_at_the_third(state: dict[str, object], path: Path) -> None:
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(torch, "save", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    monkeypatch.undo()
    resumed = train("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_other_options_is_refused(data: Path, tmp_path: Path) -> None:
    command = ["teacher", "--data", str(data), "--output", str(tmp_path), "--epochs", "1", *SMALL]
    main(command)
    with pytest.raises(SystemExit, match="other options"):
        main([*command, "--seed", "1"])


def test_views_without_strengths_are_only_moved_and_flipped() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    views = augment(images, color=0.0, noise=0.0)
    for image, view in zip(images, views, strict=True):
        assert torch.isin(view, image).float().mean() > 0.5
        assert torch.allclose(view.sort().values.mean(), image.mean(), atol=0.1)


def test_targets_mix_as_images_do() -> None:
    np.random.seed(0)
    images = torch.eye(3).view(3, 3, 1, 1)
    mixed, targets = mixup(images, torch.eye(3), alpha=1.0)
    assert torch.allclose(mixed.view(3, 3), targets)


def test_the_first_weights_of_value_and_projection_are_near_a_negative_identity() -> None:
    torch.manual_seed(0)
    model = build_teacher(width=64, depth=1, heads=2)
    qkv, proj = (model.get_parameter(f"blocks.0.attn.{layer}.weight") for layer in ("qkv", "proj"))
    product = proj @ qkv[128:]
    assert product.diagonal().mean().item() == pytest.approx(-0.4, abs=0.1)
    assert (product - torch.diag(product.diagonal())).mean().abs() < 0.05


def test_the_committed_teacher_is_the_one_of_the_recorded_options() -> None:
    loaded = load_model(ModelConfig(name=f"local-dir:{TEACHER}", pretrained=True))
    history = json.loads((TEACHER / "history.json").read_text())
    assert loaded.class_names == CLASS_NAMES
    assert (loaded.mean, loaded.std) == (MEAN, STD)
    assert history["top1"] >= 80
    assert len(history["losses"]) == history["options"]["epochs"]
    assert timm.models.get_model_args(loaded.model)["embed_dim"] == history["options"]["width"]
