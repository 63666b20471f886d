"""Train the CIFAR-10 teacher: a small Vision Transformer, from scratch.

    python -m benchmarks.cifar teacher --data DIR --output runs/cifar

`DIR` holds `train.parquet` and `test.parquet` with the columns `image` (struct with `bytes`) and `label`, as Hugging
Face lays CIFAR-10 out; without them, torchvision downloads CIFAR-10 there. Writes

    teacher/          the model as a folder that `timm.create_model("local-dir:...")` loads, weights in float16
    history.json      options, training loss of each epoch, and top-1 on the 10,000 test images
    checkpoint.pt     state of training: the same command goes on from it, and refuses other options

The recipe: crops, flips, color, noise and mixup (Zhang et al., ICLR 2018); mimetic initialization (Trockman and Kolter,
ICML 2023, arXiv 2305.09828); half of the patches dropped in the first 90% of the epochs (Liu et al., CVPR 2023, arXiv
2212.00794). Nothing is chosen by the test images. Needs neither Ray nor torchao. Prints one JSON line.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.circumstances import circumstances
from pipeline.models import save_model

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SPLITS = ("train", "test")
IMAGE_SIZE, PATCH_SIZE = 32, 4
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
_PADDING = 4  # pixels on each side, from which crops are taken
_DROPPED = 0.5  # share of the patches dropped in the first epochs
_WHOLE_FROM = 0.9  # share of the epochs after which the model reads all patches


@dataclass(frozen=True)
class Photos:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N]."""

    images: Tensor
    labels: Tensor


def load_photos(folder: Path, split: str) -> Photos:
    """Load `train` or `test` from Parquet files, or else by torchvision's download."""
    file = folder / f"{split}.parquet"
    if not file.exists():
        from torchvision.datasets import CIFAR10

        downloaded = CIFAR10(str(folder), train=split == "train", download=True)
        return _photos(downloaded.data, downloaded.targets)
    table = pq.read_table(file, columns=["image", "label"]).to_pydict()
    images = [np.asarray(Image.open(BytesIO(image["bytes"])).convert("RGB")) for image in table["image"]]
    return _photos(np.stack(images), table["label"])


def _photos(images: np.ndarray, labels: Sequence[int]) -> Photos:
    return Photos(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def normalize(images: Tensor) -> Tensor:
    """Return uint8 images [B, 3, H, W] as float32, with mean 0 and deviation 1 over the training images."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augment(images: Tensor, *, color: float, noise: float) -> Tensor:
    """Crop, flip, change brightness, contrast and saturation, and add noise, each image differently.

    Args:
        images: normalized, float32 [B, 3, H, W].
        color: largest relative change of contrast and saturation, and largest shift of brightness in deviations.
        noise: standard deviation.
    """
    batch, _, height, width = images.shape
    # Affine grids move by whole pixels here: nothing is interpolated.
    shift = torch.randint(-_PADDING, _PADDING + 1, (batch, 2), device=images.device) * 2 / width
    sign = torch.randint(0, 2, (batch,), device=images.device) * 2.0 - 1
    zero, one = torch.zeros_like(sign), torch.ones_like(sign)
    affine = torch.stack([sign, zero, shift[:, 0], zero, one, shift[:, 1]], dim=1).view(batch, 2, 3)
    grid = F.affine_grid(affine, [batch, 3, height, width], align_corners=False)
    moved = F.grid_sample(images, grid, mode="nearest", padding_mode="reflection", align_corners=False)

    def factor() -> Tensor:
        return 1 + color * (2 * torch.rand(batch, 1, 1, 1, device=images.device) - 1)

    gray = moved.mean(dim=1, keepdim=True)
    saturated = gray + factor() * (moved - gray)
    center = saturated.mean(dim=(1, 2, 3), keepdim=True)
    return center * factor() + factor() * (saturated - center) + noise * torch.randn_like(moved)


def mixup(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix a batch with a permutation of itself, images and targets alike (mixup, ICLR 2018, section 2)."""
    share = float(np.random.beta(alpha, alpha)) if alpha else 1.0
    other = torch.randperm(len(images), device=images.device)
    return share * images + (1 - share) * images[other], share * targets + (1 - share) * targets[other]


def build_teacher(*, width: int, depth: int, heads: int) -> nn.Module:
    """Return an untrained ViT on 8 × 8 patches of 4 × 4 pixels, with mimetic initial weights."""
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=len(CLASS_NAMES),
        patch_drop_rate=_DROPPED,
        # Whole images: without it, timm's evaluation transform would crop them.
        pretrained_cfg_overlay={
            "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
            "crop_pct": 1.0,
            "mean": MEAN,
            "std": STD,
        },
    )
    initialize(model, heads)
    return model


@torch.no_grad()
def initialize(model: nn.Module, heads: int) -> None:
    """Make products of attention weights resemble those of trained ViTs (arXiv 2305.09828, section 3).

    In each head, query times key is near 0.7 times a random matrix plus 0.7 times the identity; over all heads, value
    times projection is near 0.4 times a random matrix minus 0.4 times the identity. Positions start sinusoidal.
    """
    position = model.get_parameter("pos_embed")
    position[0, -((IMAGE_SIZE // PATCH_SIZE) ** 2) :] = _sinusoids(position.shape[-1])
    for name, module in model.named_modules():
        if not name.endswith(".attn"):
            continue
        qkv, proj = (module.get_submodule(layer).get_parameter("weight") for layer in ("qkv", "proj"))
        width = proj.shape[0]
        size = width // heads
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            left, right = _factors(0.7 * torch.randn(width, width) / width**0.5 + 0.7 * torch.eye(width), size)
            qkv[:width][rows], qkv[width : 2 * width][rows] = left.T, right.T
        left, right = _factors(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width), width)
        qkv[2 * width :], proj[:] = right.T, left


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return L, R [D, rank], with L @ R.T the nearest matrix of that rank."""
    u, s, vh = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vh[:rank].T * root


def _sinusoids(width: int) -> Tensor:
    """Return two-dimensional sinusoidal position embeddings [patches, width] (as in MAE, He et al., CVPR 2022)."""
    side = torch.arange(IMAGE_SIZE // PATCH_SIZE, dtype=torch.float32)
    row, column = torch.meshgrid(side, side, indexing="ij")
    frequency = 10000 ** -(torch.arange(width // 4) / (width // 4))
    angles = [place.flatten()[:, None] * frequency for place in (row, column)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


@dataclass
class Training:
    """A model in training, its optimizer, and what was reached."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float]

    def save(self, path: Path, options: dict[str, Any]) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        part = path.with_suffix(".part")
        torch.save({**state, "losses": self.losses, "options": options}, part)
        part.replace(path)

    def resume(self, path: Path, options: dict[str, Any]) -> None:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["options"] != options:
            raise SystemExit(f"error: {path} is of other options: {state['options']}, not {options}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"]


def train_epoch(training: Training, photos: Photos, options: argparse.Namespace) -> float:
    """Train on all images once; return the mean loss."""
    model, epoch = training.model.train(), len(training.losses)
    device = photos.images.device
    torch.manual_seed(options.seed * 100_000 + epoch)
    np.random.seed(options.seed * 100_000 + epoch)
    dropout: Any = model.get_submodule("patch_drop")
    dropout.prob = _DROPPED if epoch < _WHOLE_FROM * options.epochs else 0.0
    order = torch.randperm(len(photos.labels), device=device)
    total = torch.zeros((), device=device)
    for step, index in enumerate(order.split(options.batch)):
        done = (epoch + step * options.batch / len(order)) / options.epochs
        for group in training.optimizer.param_groups:
            group["lr"] = options.lr * _factor(done)
        images = augment(normalize(photos.images[index]), color=options.color, noise=options.noise)
        targets = F.one_hot(photos.labels[index], len(CLASS_NAMES)).float()
        images, targets = mixup(images, targets, options.mixup)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=0.1)
        training.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        training.optimizer.step()
        total += loss.detach() * len(index)
    return total.item() / len(order)


def _factor(done: float) -> float:
    """Return the learning rate's factor: linear for a twentieth of the training, then a cosine to zero."""
    return min(done / 0.05, 0.5 * (1 + math.cos(math.pi * done)))


@torch.inference_mode()
def top1(model: nn.Module, photos: Photos) -> float:
    """Return the percentage of the images that a model classifies as labeled, in float32."""
    correct = sum(
        (model(normalize(images)).argmax(dim=1) == labels).sum().item()
        for images, labels in zip(photos.images.split(1000), photos.labels.split(1000), strict=True)
    )
    return 100 * correct / len(photos.labels)


def train_teacher(options: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on training, and write the teacher; return the JSON line as plain data."""
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    output, started = Path(options.output), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    train, test = (
        Photos(p.images.to(device), p.labels.to(device)) for p in (load_photos(Path(options.data), s) for s in SPLITS)
    )
    torch.manual_seed(options.seed)
    model = build_teacher(width=options.width, depth=options.depth, heads=options.heads).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    training, decides = Training(model, optimizer, []), _deciding(options)
    if (checkpoint := output / "checkpoint.pt").exists():
        training.resume(checkpoint, decides)
    while len(training.losses) < options.epochs:
        training.losses.append(train_epoch(training, train, options))
        epoch = len(training.losses)
        if epoch % options.save_every == 0 or epoch == options.epochs:
            training.save(checkpoint, decides)
            print(f"epoch {epoch}/{options.epochs}: loss {training.losses[-1]:.3f}", flush=True)
    # Scored as it is stored.
    model = model.half().float().eval()
    reached = round(top1(model, test), 2)
    save_model(model.half().cpu(), str(output / "teacher"), class_names=CLASS_NAMES, mean=MEAN, std=STD)
    history = {"options": decides, "top1": reached, "losses": training.losses}
    (output / "history.json").write_text(json.dumps(history) + "\n")
    return {
        "top1": reached,
        **decides,
        "seconds": round(time.monotonic() - started),
        **circumstances("benchmarks.cifar", device),
    }


def _deciding(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that decide what the teacher becomes."""
    return {k: v for k, v in vars(options).items() if k not in ("what", "data", "output", "threads", "save_every")}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["teacher"])
    parser.add_argument("--data", required=True, help="folder of train.parquet and test.parquet, or of a download")
    parser.add_argument("--output", required=True, help="folder to write")
    for name, default in {"width": 128, "depth": 6, "heads": 4, "epochs": 120, "batch": 256, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"lr": 2e-3, "weight-decay": 0.05, "color": 0.3, "noise": 0.1, "mixup": 0.8}.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=5, help="epochs between checkpoints")
    print(json.dumps(train_teacher(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
