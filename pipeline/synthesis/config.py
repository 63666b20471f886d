"""Settings of a synthesis."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from pipeline.checks import check_finite, check_range, check_ranges, check_seed, check_types
from pipeline.dataset.work import actors_per_gpu, check_price
from pipeline.errors import ConfigError
from pipeline.inversion import InversionConfig
from pipeline.models import ModelConfig
from pipeline.synthesis.classes import Classes, names_file, read_classes
from pipeline.synthesis.selectors import check_selectors
from pipeline.tracking.config import TrackingConfig
from pipeline.workers import DeviceChoice, with_absolute_paths

_ONE_GPU = "an actor computes on one GPU, and more GPUs take more actors (pool.max_size)"
# Their pictures must fit into a page.
MOST_SNAPSHOTS = 6


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The actors that invert, and how long to wait for them.

    Args:
        min_size: actors needed to begin.
        max_size: the most actors, at most one per shard.
        initial_size: actors requested at once, so that an autoscaler starts their nodes together; work begins with
            `min_size` of them. By default as many as there is work for, up to `max_size`.
        cpus_per_actor: CPU cores of an actor without a GPU, and torch threads of every actor. It changes how pixels are
            rounded.
        gpus_per_actor: share of a GPU for each actor. With 0.5 two actors share a GPU and its memory, which uses it
            better when the teacher is small. An actor never gets more than one GPU.
        device: `auto` uses GPUs if the cluster has any, or its autoscaler can add some; `cuda` waits for them where
            that cannot be known.
        label_selector: labels of the nodes to use, as in `{ray.io/accelerator-type: L4}`. Values are Ray's: `A`, `!A`,
            `in(A, B)`, `!in(A, B)`.
        fallback: further selectors, to try in turn where no node can match the one before; `{}` is any node.
        start_timeout_s: seconds to wait for `min_size` actors, while nodes start.
        no_progress_timeout_s: seconds to wait for the next shard before giving up; -1 waits forever.
        price_per_hour: price of an actor-hour, in any currency, so with two actors on a GPU half of the GPU's; the dry
            run, the summary and `jobs.status` then state the cost.
        max_attempts: attempts at a shard that kills its worker, or fails on one GPU after another, before it is
            recorded as failed.
    """

    min_size: int = 1
    max_size: int = 1
    initial_size: int | None = None
    cpus_per_actor: int = 1
    gpus_per_actor: float = 1.0
    device: DeviceChoice = "auto"
    label_selector: dict[str, str] = field(default_factory=dict)
    fallback: list[dict[str, str]] = field(default_factory=list)
    start_timeout_s: int = 900
    # A shard of 4000 dense steps on a CPU takes hours.
    no_progress_timeout_s: int = 6 * 3600
    price_per_hour: float | None = None
    max_attempts: int = 3

    def __post_init__(self) -> None:
        check_types(self, "pool.")
        check_finite(self, "pool.")
        for name in ("min_size", "cpus_per_actor", "max_attempts", "start_timeout_s"):
            check_range(f"pool.{name}", getattr(self, name), 1)
        if self.max_size < self.min_size:
            raise ConfigError(f"pool.max_size must be at least min_size {self.min_size}, not {self.max_size}")
        check_range("pool.initial_size", self.initial_size, self.min_size, self.max_size)
        if self.gpus_per_actor > 1:
            raise ConfigError(f"pool.gpus_per_actor must not exceed 1, not {self.gpus_per_actor:g}: {_ONE_GPU}")
        check_price(self.gpus_per_actor, self.price_per_hour)
        check_selectors(self.label_selector, self.fallback)
        if self.no_progress_timeout_s < 1 and self.no_progress_timeout_s != -1:
            raise ConfigError(f"pool.no_progress_timeout_s must be positive or -1, not {self.no_progress_timeout_s}")

    @property
    def actors_per_gpu(self) -> int:
        """Actors that share a GPU."""
        return actors_per_gpu(self.gpus_per_actor)


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """Invert a teacher into a synthetic dataset.

    Args:
        teacher: the trained ViT to invert.
        output: folder of the dataset, at any fsspec URI.
        images_per_class: images per class; with `inversion.rebirth` v, a multiple of v.
        classes: labels and ranges, as a list or as text (`0-9,20`), or the URI of a file of them, one or more a line;
            by default all of the teacher's.
        shard_size: images per part file, which are inverted together; with `inversion.rebirth` v, a multiple of v.
        seed: seed of all random draws.
        inversion: losses, schedule and optimizer.
        feature_model: CNN of the feature prior, if `inversion.feature_prior` is set.
        student: trained student of the adversarial term, if `inversion.adversarial` is set.
        pool: number and resources of the actors.
        snapshots: number of images, up to 6, whose progress during inversion `report.html` shows. The images are the
            first ones of the first part, and the same with and without snapshots.
        checkpoint_minutes: minutes between checkpoints of a shard that is being inverted. Another worker can resume
            from them, and makes the same images. One is also written when the worker's node is about to be reclaimed.
            With `null` there are none, and an interrupted shard starts over.
        shard_order: the order in which shards are made: `numbered`, class by class, or `shuffled`, so that the first
            ones cover all classes. The images are the same either way.
        retry_failed: retry shards that an earlier run recorded as failed; false skips them.
        dry_run: print what would be done, and how long it would take; write nothing.
        tracking: where to report the run: TensorBoard, MLflow, both or neither.
    """

    teacher: ModelConfig
    output: str
    images_per_class: int
    # A tuple instead of a list, because the parser of configs takes minutes for a list of thousands.
    classes: Classes | None = None
    shard_size: int = 32
    seed: int = 0
    inversion: InversionConfig = field(default_factory=InversionConfig)
    feature_model: ModelConfig | None = None
    student: ModelConfig | None = None
    pool: PoolConfig = field(default_factory=PoolConfig)
    snapshots: int = 0
    checkpoint_minutes: float | None = 10.0
    shard_order: Literal["numbered", "shuffled"] = "numbered"
    retry_failed: bool = True
    dry_run: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_types(self)
        if not self.output:
            raise ConfigError("output must name a folder, it is empty")
        if self.checkpoint_minutes == math.inf:
            raise ConfigError("checkpoint_minutes must be finite, not inf: null is for no checkpoints")
        check_finite(self)
        check_ranges(self, ("images_per_class", "shard_size"), 1)
        check_seed(self.seed)
        check_range("snapshots", self.snapshots, 0, MOST_SNAPSHOTS)
        check_range("checkpoint_minutes", self.checkpoint_minutes, 0, open_low=True)
        if self.classes is not None and not names_file(self.classes):
            read_classes(self.classes)
        per_run = self.inversion.images_per_run
        for name in ("images_per_class", "shard_size"):
            if getattr(self, name) % per_run:
                raise ConfigError(
                    f"{name} must be a multiple of inversion.rebirth {per_run}, not {getattr(self, name)}"
                )
        micro_batch = self.inversion.micro_batch or self.shard_size
        if self.inversion.scope == "published" and self.inversion.feature_prior and micro_batch < self.shard_size:
            raise ConfigError(
                f"inversion.micro_batch {micro_batch} splits shards of {self.shard_size}, and with scope published the "
                "feature prior is defined on the whole shard"
            )
        weights = self.inversion.weights
        if self.inversion.iterations and not any(weights.values()):
            raise ConfigError(
                f"{', '.join(f'inversion.{name}' for name in weights)} are 0, and {self.inversion.iterations} "
                "iterations would leave the images as they start: give one of them a weight"
            )
        self._check_together("feature_prior", "feature_model")
        self._check_together("adversarial", "student")

    def _check_together(self, term: str, network: str) -> None:
        weight, model = getattr(self.inversion, term), getattr(self, network)
        if bool(weight) != (model is not None):
            raise ConfigError(
                f"inversion.{term} {weight} and {network} {model and model.name!r} go together: give both or neither"
            )


def located(config: SynthesisConfig) -> SynthesisConfig:
    """Return the config with absolute local paths, and classes read from their file: actors have folders of their own.

    Raises:
        ConfigError: the file of classes cannot be read.
    """
    classes = config.classes
    if names_file(classes):
        classes = tuple(f"{labels.start}-{labels.stop - 1}" for labels in read_classes(classes))
    return dataclasses.replace(with_absolute_paths(config), classes=classes)
