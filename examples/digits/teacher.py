"""Train the demo's teacher on scikit-learn's 1,797 handwritten digits, and write its real images.

`python -m examples.digits.teacher --output runs/digits` writes

    teacher/            a small Vision Transformer as a folder that `timm.create_model("local-dir:...")` loads
    real.parquet        20 training images per class: what calibration and distillation on real images read
    reference.parquet   20 others per class: what activation ranges are compared with
    held_out.parquet    500 images that nothing is trained on: what every score is of
    history.json        training loss and held-out top-1, an epoch each
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from jobs.entry import run_job
from pipeline.checks import check_finite, check_ranges, check_seed
from pipeline.config import to_dict
from pipeline.dataset.store import write_images
from pipeline.errors import ConfigError
from pipeline.log import logger
from pipeline.models import save_model
from pipeline.outputs.owners import check_place
from pipeline.storage import check_writable, join, scratch_folder, upload_folder, write_json, writing_to

CLASS_NAMES = [str(digit) for digit in range(10)]
IMAGE_SIZE = 32  # pixels; the scans are 8×8
MEAN, STD = (0.5,), (0.5,)


@dataclass(frozen=True, kw_only=True)
class DigitsConfig:
    """Train a teacher on handwritten digits.

    Args:
        output: folder or URI for the teacher and the sets of images.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate of AdamW, after a tenth of the steps, before a cosine to zero.
        weight_decay: of AdamW.
        noise: standard deviation of the noise added to the normalized training images. Without noise and the
            geometric changes beside it, inversions of the teacher are texture that teaches a student nothing.
        held_out: images kept for scoring.
        images_per_class: size of the real set and of the reference set.
        threads: CPU threads for training. Another number rounds differently, and after a thousand steps that is
            another teacher: as accurate, but inverting and pruning differently.
        seed: of the split, the initial weights and the augmentation.
    """

    output: str
    epochs: int = 40
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    noise: float = 0.3
    held_out: int = 500
    images_per_class: int = 20
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_finite(self)
        positive = ("epochs", "batch_size", "lr", "held_out", "images_per_class", "threads")
        check_ranges(self, positive, 0, open_low=True)
        check_ranges(self, ("weight_decay", "noise"), 0)
        check_seed(self.seed)


@dataclass(frozen=True)
class LabeledImages:
    """Images uint8 [N, H, W, C] and their labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, index: np.ndarray) -> "LabeledImages":
        return LabeledImages(self.images[index], self.labels[index])


def load_scans() -> LabeledImages:
    """All 1,797 scans, enlarged from 8×8 with 17 gray levels to 32×32 with 256."""
    pixels, labels = load_digits(return_X_y=True)
    small = np.round(np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = [np.asarray(Image.fromarray(scan).resize(size, Image.Resampling.BICUBIC)) for scan in small]
    return LabeledImages(np.stack(images)[..., None], np.asarray(labels, np.int64))


def split_scans(scans: LabeledImages, *, held_out: int, images_per_class: int, seed: int) -> dict[str, LabeledImages]:
    """Shuffle and divide: `held_out`, and the rest as `train`; `real` and `reference` are disjoint parts of `train`.

    Raises:
        ConfigError: more is asked for than there is.
    """
    order = np.random.default_rng(seed).permutation(len(scans.labels))
    train = scans.take(order[held_out:])
    members = [np.flatnonzero(train.labels == label) for label in range(len(CLASS_NAMES))]
    if (fewest := min(len(member) for member in members)) < 2 * images_per_class:
        raise ConfigError(
            f"held_out={held_out} leaves {fewest} images of a class, too few for two sets of {images_per_class}"
        )
    real = np.concatenate([member[:images_per_class] for member in members])
    reference = np.concatenate([member[images_per_class : 2 * images_per_class] for member in members])
    return {
        "held_out": scans.take(order[:held_out]),
        "train": train,
        "real": train.take(real),
        "reference": train.take(reference),
    }


def normalize(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, C] → float32 [N, C, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def augment(images: Tensor, *, noise: float, generator: torch.Generator) -> Tensor:
    """Rotate by up to 15°, scale by up to 15%, shift by up to an eighth of the side, and add noise.

    Args:
        images: float32 [B, C, H, W] in [-1, 1].
        noise: standard deviation.
        generator: what decides all of it.
    """

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * limit

    angle, scale = uniform(math.radians(15)), 1 + uniform(0.15)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # Coordinates run from -1 to 1, so an eighth of the side is 0.25.
    affine = torch.stack([cos, -sin, uniform(0.25), sin, cos, uniform(0.25)], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    # What is sampled from outside is 0: shift, so that this means black.
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    return moved + noise * torch.randn(moved.shape, generator=generator)


def build_teacher(seed: int, *, channels: int, num_classes: int) -> nn.Module:
    """An untrained ViT of width 64 and depth 4 on 8×8 patches of 4×4 pixels, for images in [-1, 1]."""
    torch.manual_seed(seed)
    # crop_pct 1: the eval transform takes a 32×32 image as it is.
    overlay = {
        "input_size": (channels, IMAGE_SIZE, IMAGE_SIZE),
        "crop_pct": 1.0,
        "mean": MEAN * channels,
        "std": STD * channels,
    }
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=IMAGE_SIZE,
        patch_size=4,
        embed_dim=64,
        depth=4,
        num_heads=2,
        in_chans=channels,
        num_classes=num_classes,
        pretrained_cfg_overlay=overlay,
    )
    _start_weights(model)
    return model


def _start_weights(model: nn.Module) -> None:
    # timm's initial weights (deviation 0.02) are made for widths of several hundred: at 64 they hold training up for
    # ten epochs. Xavier's follow the width.
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.trunc_normal_(model.get_parameter("pos_embed"), std=0.2)


def train_teacher(
    model: nn.Module, config: DigitsConfig, train: LabeledImages, held_out: LabeledImages
) -> tuple[nn.Module, dict[str, list[float]]]:
    """Train with AdamW; returns the model in eval mode and its history.

    The held-out top-1 is only recorded: nothing is chosen by it.
    """
    generator = torch.Generator().manual_seed(config.seed)
    images, labels = normalize(train.images), torch.from_numpy(train.labels)
    steps = config.epochs * math.ceil(len(labels) / config.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    history: dict[str, list[float]] = {"loss": [], "top1": []}
    for epoch in range(config.epochs):
        model.train()
        total = 0.0
        for index in torch.randperm(len(labels), generator=generator).split(config.batch_size):
            batch = augment(images[index], noise=config.noise, generator=generator)
            loss = F.cross_entropy(model(batch), labels[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        history["loss"].append(total / len(labels))
        history["top1"].append(top1(model.eval(), held_out))
        if (epoch + 1) % 10 == 0 or epoch + 1 == config.epochs:
            figures = f"loss {history['loss'][-1]:.3f}, held-out top-1 {history['top1'][-1]:.1f}%"
            logger.info(f"epoch {epoch + 1}/{config.epochs}: {figures}")
    return model.eval(), history


@torch.inference_mode()
def top1(model: nn.Module, split: LabeledImages) -> float:
    """Percent of the images that the model classifies as labeled."""
    prediction = model(normalize(split.images)).argmax(dim=1)
    return 100 * (prediction == torch.from_numpy(split.labels)).float().mean().item()


def make_digits(config: DigitsConfig) -> dict[str, Any]:
    """Train the teacher and write it and the sets of real images under `config.output`.

    Raises:
        ConfigError: more images are asked for than there are.
        DatasetError: the output cannot be written.
    """
    sets = split_scans(
        load_scans(), held_out=config.held_out, images_per_class=config.images_per_class, seed=config.seed
    )
    check_place(config.output, shared=False)
    check_writable(config.output)
    torch.set_num_threads(config.threads)
    untrained = build_teacher(config.seed, channels=1, num_classes=len(CLASS_NAMES))
    model, history = train_teacher(untrained, config, sets["train"], sets["held_out"])
    with scratch_folder("teacher-") as folder:
        save_model(model, folder, class_names=CLASS_NAMES, mean=MEAN, std=STD)
        with writing_to(config.output):
            upload_folder(folder, join(config.output, "teacher"))
    with writing_to(config.output):
        for name in ("real", "reference", "held_out"):
            write_images(join(config.output, f"{name}.parquet"), sets[name].images, sets[name].labels, CLASS_NAMES)
        write_json(join(config.output, "history.json"), {"config": to_dict(config), **history})
    return {"teacher": join(config.output, "teacher"), "top1": history["top1"][-1]}


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("digits", DigitsConfig, make_digits, argv)


if __name__ == "__main__":
    sys.exit(main())
