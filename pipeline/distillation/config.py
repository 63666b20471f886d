"""Settings of a distillation."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pipeline.checks import (
    check_finite,
    check_labeled_split,
    check_located,
    check_range,
    check_ranges,
    check_seed,
    check_types,
)
from pipeline.config import former_default
from pipeline.config.former_names import LABELED
from pipeline.distillation.augment_config import AugmentConfig
from pipeline.errors import ConfigError
from pipeline.models import ModelConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.workers import FLAT_NAMES, WorkersConfig

_MODEL = (
    "name",
    "pretrained",
    "checkpoint",
    "use_ema",
    "num_classes",
    "in_chans",
    "model_args",
    "class_names",
    "mean",
    "std",
)
# Which settings identify a training, see `pipeline.outputs.identifying_settings`. The first list is frozen. Excluded
# are those that decide where and how fast a student is trained.
RECORDED_SETTINGS = frozenset(
    (
        *("teacher", *(f"teacher.{name}" for name in _MODEL)),
        *("student", "student.model", *(f"student.model.{name}" for name in _MODEL)),
        *(
            "student.depth_pruned",
            "student.linear_head",
            "images",
            "labelled",
            "epochs",
            "batch_size",
            "optimizer",
            "lr",
        ),
        *("weight_decay", "momentum", "schedule", "warmup_epochs", "temperature", "token_weight", "label_weight"),
        *("dtype", "seed", "score_every", "shuffle_buffer"),
    )
)
EXCLUDED_SETTINGS = (
    "output",
    "workers",
    "checkpoint_every",
    "checkpoint_minutes",
    "cache_gb",
    "allow_incomplete",
    "tracking",
)
# A setting that was renamed is recorded, and counts in digests, under its first name.
RECORDED_AS = {name: former for former, name in LABELED.items()}
_POSITIVE = (
    "epochs",
    "batch_size",
    "lr",
    "temperature",
    "score_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "shuffle_buffer",
)
_NOT_NEGATIVE = ("weight_decay", "token_weight", "label_weight", "cache_gb")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student to train: a model, or a copy of the teacher with fewer blocks.

    Args:
        model: any timm model, with or without weights. Channels and classes default to the teacher's, and so does the
            normalization if it has no weights of its own.
        depth_pruned: the teacher's blocks to keep, counted from 0; the rest of the copy is the teacher's.
        linear_head: freeze the backbone, which must have weights, in evaluation mode, and train a new linear head
            alone, as published (SMI, Hu et al., ICML 2024, section 4.2, on an ImageNet backbone).
    """

    model: ModelConfig | None = None
    depth_pruned: list[int] | None = None
    linear_head: bool = False

    def __post_init__(self) -> None:
        check_types(self, "student.")
        if (self.model is None) == (self.depth_pruned is None):
            given = "both" if self.model is not None else "neither"
            raise ConfigError(f"student: give model or depth_pruned, one of the two; got {given}")
        if self.depth_pruned is not None:
            _check_blocks(self.depth_pruned)


@dataclass(frozen=True, kw_only=True)
class WeightedImages:
    """Images that are read several times per epoch, such as a few real ones among many synthetic ones.

    Args:
        uri: URI of a synthetic dataset, Parquet files or an image folder.
        weight: how often each image is read per epoch, with `augment` as another view each time.
    """

    uri: str
    weight: int = 1

    def __post_init__(self) -> None:
        check_types(self, "images.")
        check_located("images", self.uri)
        check_range("images.weight", self.weight, 1)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Train a student to match the teacher on synthetic or real images.

    Args:
        teacher: the model to learn from. A ViT reads only the kept patches, other families read the filled image.
        student: the model to train.
        images: URI of a synthetic dataset, Parquet files or an image folder, or a list of URIs, which are shuffled
            together. `{uri: URI, weight: 10}` in the list is read ten times per epoch. Or the file of a synthesis
            config, such as `synthesize.yaml`: its images are made while the student is trained on them.
        images_split: split to read, such as `train`, if there are several; with a list, it applies to every dataset
            that is not synthetic.
        output: folder of the student, checkpoints and report, at any fsspec URI.
        labeled: labeled images to score the student on. The best epoch is the one with the highest top-1; without
            labeled images, the one with the lowest training loss.
        labeled_split: split to read, such as `test`, if there are several.
        epochs: passes over the images.
        batch_size: images per step, over all workers together.
        optimizer: AdamW, or SGD with momentum.
        lr: peak learning rate.
        weight_decay: weight decay of either optimizer.
        momentum: momentum of SGD.
        schedule: learning rate after the warm-up; `cosine` falls to zero.
        warmup_epochs: epochs over which the learning rate rises linearly from zero.
        temperature: divisor of the logits before they are compared.
        token_weight: weight of the squared difference of the final tokens; 0 turns it off, which `student.linear_head`
            requires.
        label_weight: weight of the cross-entropy with the images' labels, which every dataset needs then; 0 turns it
            off. Mixtures of several images have no label and do not take part.
        augment: random views for teacher and student, a new one of each image in each epoch; with `null`, images are
            not changed, and the teacher's answers for images in memory are computed once.
        dtype: type of the forward pass in training. Weights stay in float32, in which the student is scored and saved.
        seed: seed of new weights and of the order of images.
        score_every: epochs between scorings; the last epoch is always scored.
        checkpoint_every: epochs between checkpoints.
        checkpoint_minutes: minutes between checkpoints within an epoch. One is also written when a worker's node is
            about to be reclaimed.
        cache_gb: images that take up to this much memory, decoded, are read once and kept by each worker; larger
            datasets are read again at each epoch.
        shuffle_buffer: images that each worker shuffles together when it reads them again at each epoch.
        workers: number and resources of the Ray Train workers.
        allow_incomplete: accept a synthetic dataset with missing shards.
        tracking: where to report the run: TensorBoard, MLflow, both or neither.
    """

    FORMER_NAMES: ClassVar[dict[str, str]] = LABELED | FLAT_NAMES

    teacher: ModelConfig
    student: StudentConfig
    images: str | list[str | WeightedImages]
    images_split: str | None = None
    output: str
    labeled: str | None = None
    labeled_split: str | None = None
    epochs: int = 60
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_epochs: float = 0.0
    temperature: float = 4.0
    token_weight: float = 0.0
    label_weight: float = 0.0
    augment: AugmentConfig | None = field(default_factory=AugmentConfig, metadata=former_default(None))
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    score_every: int = 1
    checkpoint_every: int = 1
    checkpoint_minutes: float = 10.0
    cache_gb: float = 1.0
    shuffle_buffer: int = 1024
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    allow_incomplete: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_finite(self)
        check_ranges(self, _POSITIVE, 0, open_low=True)
        check_ranges(self, _NOT_NEGATIVE, 0)
        check_seed(self.seed)
        check_located("images", [each.uri for each in list_images(self)])
        check_located("labeled", self.labeled)
        check_range("momentum", self.momentum, 0, 1, open_high=True)
        check_range("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        check_labeled_split(self.labeled, self.labeled_split)
        _check_labels(self)
        _check_frozen(self)
        self.workers.check_batch_size("batch_size", self.batch_size)


def list_images(config: DistillationConfig) -> list[WeightedImages]:
    """Return the datasets to train on, each with its weight."""
    given = [config.images] if isinstance(config.images, str) else config.images
    return [WeightedImages(uri=each) if isinstance(each, str) else each for each in given]


def _check_labels(config: DistillationConfig) -> None:
    """Check that some images keep their label."""
    augment = config.augment
    if augment is not None and config.label_weight and max(augment.mixup, augment.cutmix) == 1:
        raise ConfigError(
            f"label_weight is {config.label_weight:g}, but augment mixes every image with others (mixup "
            f"{augment.mixup:g}, cutmix {augment.cutmix:g}), and a mixture has no label: lower the two, or set "
            "label_weight to 0"
        )


def _check_frozen(config: DistillationConfig) -> None:
    """Check that the trained weights can change every term of the loss: its value chooses the best epoch."""
    if config.token_weight and config.student.linear_head:
        raise ConfigError(
            f"token_weight is {config.token_weight:g}, and student.linear_head trains the head alone, which changes no "
            "token: set token_weight to 0, or linear_head to false"
        )


def _check_blocks(blocks: list[int]) -> None:
    if not blocks:
        raise ConfigError("student.depth_pruned is empty: name the teacher's blocks to keep")
    if sorted(set(blocks)) != blocks or blocks[0] < 0:
        raise ConfigError(f"student.depth_pruned must be block numbers from 0, increasing, not {blocks}")
