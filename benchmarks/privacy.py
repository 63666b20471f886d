"""How near synthetic images come to the images that the teacher was trained on: one JSON line.

    python -m benchmarks.privacy --teacher.name local-dir:FOLDER --images OUTPUT --train TRAIN --held_out HELD_OUT

For each synthetic image, the nearest of the training images is compared with the nearest of equally many held-out ones,
in pixels and in the teacher's features. Images that repeat training images are nearer to these; images that show only
what the classes have in common are as near to held-out ones. `docs/privacy.md` says what that means and what it does
not. Without `--train` and `--held_out`, the real images are the scans of `examples.digits.teacher`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.circumstances import circumstances
from examples.digits.teacher import DigitsConfig, load_scans, normalize, split_scans
from jobs.entry import run_job
from pipeline.checks import check_ranges
from pipeline.dataset.discovery import find_source
from pipeline.dataset.rows import read_unit
from pipeline.distillation.answers import as_reader
from pipeline.errors import ConfigError
from pipeline.inputs import COLUMNS, conversion
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.models.image_reader import num_patches
from pipeline.synthesis.neighbors import nearest
from pipeline.vit.subset import SubsetViT

# Pixels are averaged down to about so many a side, a whole number for each patch.
_SIDE = 32
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Compare synthetic images with the real images that their teacher learned from, and with others.

    Args:
        teacher: that was inverted.
        images: URI of the synthetic dataset.
        train: URI of the images that the teacher was trained on; None for the digits' own.
        held_out: URI of images of the same kind that it was not trained on; None for the digits' own.
        max_images: synthetic images, and real ones of each kind, that are compared, drawn at random; of the digits' own
            all.
        seed: of that draw.
    """

    teacher: ModelConfig
    images: str
    train: str | None = None
    held_out: str | None = None
    max_images: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, ("max_images",), 2)
        if (self.train is None) != (self.held_out is None):
            raise ConfigError("train and held_out go together: give both, or neither for the digits")


@dataclass(frozen=True)
class DescribedImages:
    """Images as they are compared.

    Attributes:
        pixels: float32 [N, D] in [0, 1], averaged down.
        kept: float32 [N, D], 1 in kept patches and 0 elsewhere.
        features: float32 [N, F], what enters the teacher's classifier, of length 1.
        labels: int64 [N], -1 where unknown.
    """

    pixels: np.ndarray
    kept: np.ndarray
    features: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "DescribedImages":
        return DescribedImages(self.pixels[rows], self.kept[rows], self.features[rows], self.labels[rows])


class Describer:
    """Describes images by the teacher that reads them.

    Args:
        loaded: the teacher.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.reader = loaded, as_reader(loaded.model)
        # A model without patches reads the image as one.
        self.grid_size = round(num_patches(loaded) ** 0.5) or 1
        self.side = self.grid_size * max(1, _SIDE // self.grid_size)
        self._captured: list[Tensor] = []
        classifier: Any = loaded.model.get_classifier()  # type: ignore[operator]
        classifier.register_forward_pre_hook(self._capture)

    def _capture(self, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._captured.append(arguments[0].detach())

    @torch.inference_mode()
    def describe(self, images: Tensor, keep: list[list[int]], labels: list[int]) -> DescribedImages:
        """Describe normalized images float32 [B, C, H, W]; the teacher reads their kept patches if it can."""
        pooled = nn.functional.adaptive_avg_pool2d(images, self.side)
        pixels = pooled * torch.tensor(self.loaded.std).view(-1, 1, 1) + torch.tensor(self.loaded.mean).view(-1, 1, 1)
        kept = torch.zeros(len(images), self.grid_size**2)
        for row, indices in enumerate(keep):
            kept[row, indices or [0]] = 1
        mask = kept.view(-1, 1, self.grid_size, self.grid_size)
        mask = nn.functional.interpolate(mask, self.side).expand_as(pixels)
        return DescribedImages(
            pixels.flatten(1).numpy(),
            mask.flatten(1).numpy(),
            nn.functional.normalize(self._features(images, keep).flatten(1), dim=1).numpy(),
            np.array(labels, np.int64),
        )

    def _features(self, images: Tensor, keep: list[list[int]]) -> Tensor:
        """Return what enters the classifier, [B, F]; images that keep different numbers of patches go one by one."""
        if len({len(indices) for indices in keep}) > 1:
            rows = range(len(images))
            return torch.cat([self._features(images[row : row + 1], keep[row : row + 1]) for row in rows])
        self._captured.clear()
        if isinstance(self.reader, SubsetViT):
            self.reader(images, torch.tensor(keep))
        else:
            self.loaded.model(images)
        # A few images are padded to more rows, so that they are rounded as in a large batch.
        return self._captured[-1][: len(images)]


def read_described(uri: str, describer: Describer, config: PrivacyConfig) -> DescribedImages:
    """Read and describe at most `config.max_images` images, drawn at random.

    Raises:
        DatasetError: they cannot be read, or the teacher reads others.
    """
    source = find_source(uri)
    convert = conversion(source, describer.loaded, labels=False)
    chosen = np.zeros(source.num_rows, bool)
    count = min(config.max_images, source.num_rows)
    chosen[np.random.default_rng(config.seed).choice(source.num_rows, count, replace=False)] = True
    parts, first = [], 0
    for unit in source.units:
        for table in read_unit(source, unit, COLUMNS):
            picked = table.filter(chosen[first : first + len(table)])
            first += len(table)
            if len(picked):
                images = torch.from_numpy(np.stack(convert.pixels(picked)))
                keep, labels = convert.keep_indices(picked).to_pylist(), convert.labels(picked).to_pylist()
                parts.append(describer.describe(images, keep, labels))
    return _joined(parts)


def _joined(parts: Sequence[DescribedImages]) -> DescribedImages:
    columns = zip(*((part.pixels, part.kept, part.features, part.labels) for part in parts), strict=True)
    return DescribedImages(*(np.concatenate(column) for column in columns))


def describe_scans(describer: Describer) -> tuple[DescribedImages, DescribedImages]:
    """Describe the scans that the digits teacher was trained on, and those held out, as its defaults divide them."""
    defaults = DigitsConfig(output="")
    sets = split_scans(
        load_scans(), held_out=defaults.held_out, images_per_class=defaults.images_per_class, seed=defaults.seed
    )
    every = list(range(describer.grid_size**2))

    def described(name: str) -> DescribedImages:
        images = normalize(sets[name].images)
        keep, labels = [every] * len(images), sets[name].labels.tolist()
        batches = [slice(start, start + _BATCH) for start in range(0, len(images), _BATCH)]
        return _joined([describer.describe(images[b], keep[b], labels[b]) for b in batches])

    return described("train"), described("held_out")


def balanced(
    train: DescribedImages, held_out: DescribedImages, config: PrivacyConfig
) -> tuple[DescribedImages, DescribedImages]:
    """Return equally many images of both, of each class, so that chance makes neither nearer."""
    random = np.random.default_rng(config.seed)
    pairs = list(_rows_of_classes(train.labels, held_out.labels, random))
    rows = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    return train.take(rows[0]), held_out.take(rows[1])


def _rows_of_classes(
    train: np.ndarray, held_out: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    shared = np.intersect1d(train, held_out)
    if not len(shared):
        raise ConfigError("train and held_out have no class in common")
    for label in shared:
        rows = [random.permutation(np.flatnonzero(labels == label)) for labels in (train, held_out)]
        count = min(map(len, rows))
        yield rows[0][:count], rows[1][:count]


def pixel_distances(synthetic: DescribedImages, real: DescribedImages) -> np.ndarray:
    """Return each synthetic image's distance to the nearest real one: root mean square over its kept patches, [N]."""
    masked = (synthetic.pixels * synthetic.kept).astype(np.float64)
    kept, other = synthetic.kept.astype(np.float64), real.pixels.astype(np.float64)
    own = np.square(masked).sum(axis=1, keepdims=True)
    squared = own - 2 * masked @ other.T + kept @ np.square(other).T
    return np.sqrt(np.maximum(squared.min(axis=1), 0) / kept.sum(axis=1))


def feature_distances(synthetic: DescribedImages, real: DescribedImages) -> np.ndarray:
    """Return each synthetic image's distance to the nearest real one in the teacher's features, [N]."""
    return nearest(synthetic.features, real.features)[0]


_SPACES: dict[str, Callable[[DescribedImages, DescribedImages], np.ndarray]] = {
    "pixels": pixel_distances,
    "features": feature_distances,
}


def compare(to_train: np.ndarray, to_held_out: np.ndarray, to_any: np.ndarray) -> dict[str, Any]:
    """Summarize the distances of the same images, [N] each.

    Args:
        to_train, to_held_out: to the nearest of equally many training and held-out images.
        to_any: to the nearest of all training images.
    """
    ratios = to_train / np.maximum(to_held_out, 1e-12)
    # An image that is as near to both counts half.
    share = float((to_train < to_held_out).mean() + (to_train == to_held_out).mean() / 2)
    return {
        "nearer_to_train": round(share, 4),
        "interval_95": [round(bound, 4) for bound in wilson(share, len(ratios))],
        "median_ratio": round(float(np.median(ratios)), 4),
        "smallest_ratio": round(float(ratios.min()), 4),
        "median_to_train": round(float(np.median(to_train)), 4),
        "median_to_held_out": round(float(np.median(to_held_out)), 4),
        "median_to_any_train": round(float(np.median(to_any)), 4),
        "smallest_to_any_train": round(float(to_any.min()), 4),
    }


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a share (JASA 1927)."""
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return float(middle - half), float(middle + half)


def _compared(
    distances: Callable[[DescribedImages, DescribedImages], np.ndarray],
    synthetic: DescribedImages,
    train: DescribedImages,
    held_out: DescribedImages,
    any_train: DescribedImages,
) -> dict[str, Any]:
    figures = compare(*(distances(synthetic, real) for real in (train, held_out, any_train)))
    return {**figures, "median_of_held_out_to_train": round(float(np.median(distances(held_out, train))), 4)}


def measure(config: PrivacyConfig) -> dict[str, Any]:
    """Compare; return what the command prints.

    Raises:
        PipelineError: teacher or images cannot be read, or do not go together.
    """
    describer = Describer(load_model(config.teacher))
    synthetic = read_described(config.images, describer, config)
    if config.train is None or config.held_out is None:
        real = describe_scans(describer)
    else:
        real = tuple(read_described(uri, describer, config) for uri in (config.train, config.held_out))
    train, held_out = balanced(real[0], real[1], config)
    return {
        "images": len(synthetic.labels),
        "real_images_of_each_kind": len(train.labels),
        "training_images": len(real[0].labels),
        **{name: _compared(distances, synthetic, train, held_out, real[0]) for name, distances in _SPACES.items()},
        **circumstances("benchmarks.privacy", torch.device("cpu")),
    }


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("privacy", PrivacyConfig, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
