"""Plan the shards of a dataset."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from pipeline.errors import ConfigError
from pipeline.models import load_model
from pipeline.synthesis.classes import list_classes
from pipeline.synthesis.config import SynthesisConfig

# A shard's id is an int32 in every part.
_MOST_SHARDS = 2**31


class Shard(TypedDict):
    """Images that are made together and stored in one part file; a row of a Ray Dataset.

    Attributes:
        shard_id: number of the shard and of its part.
        labels: class of each image.
        image_ids: name of each image.
    """

    shard_id: int
    labels: list[int]
    image_ids: list[str]


@dataclass(frozen=True)
class ShardPlan:
    """The shards of a dataset, each computed from its number, so that a plan of millions of images takes no memory.

    Images are ordered by class, and each shard takes the next `shard_size` of them.

    Attributes:
        classes: labels of the classes, all different.
        images_per_class: number of images of each class.
        shard_size: number of images per shard; the last shard may have fewer.
    """

    classes: Sequence[int]
    images_per_class: int
    shard_size: int

    @property
    def num_images(self) -> int:
        return len(self.classes) * self.images_per_class

    def __len__(self) -> int:
        """Return the number of shards."""
        return -(-self.num_images // self.shard_size)

    def __getitem__(self, shard_id: int) -> Shard:
        """Return a shard.

        Raises:
            IndexError: there is no such shard.
        """
        images = [divmod(image, self.images_per_class) for image in self._images(shard_id)]
        labels = [self.classes[index] for index, _ in images]
        image_ids = [f"{label:05d}-{number:06d}" for label, (_, number) in zip(labels, images, strict=True)]
        return {"shard_id": shard_id, "labels": labels, "image_ids": image_ids}

    def __iter__(self) -> Iterator[Shard]:
        return (self[shard_id] for shard_id in range(len(self)))

    def shuffled(self, seed: int) -> list[int]:
        """Return the ids of all shards in a random order, which depends on the seed alone."""
        return np.random.default_rng(seed).permutation(len(self)).tolist()

    def _images(self, shard_id: int) -> range:
        """Return the places of a shard's images in the order of all."""
        if not 0 <= shard_id < len(self):
            raise IndexError(f"there are {len(self)} shards, not {shard_id}")
        return range(shard_id * self.shard_size, min((shard_id + 1) * self.shard_size, self.num_images))

    def size_of(self, shard_id: int) -> int:
        """Return the number of images of a shard."""
        return len(self._images(shard_id))

    def count_images(self, shard_ids: Iterable[int]) -> int:
        """Return the number of images of some shards."""
        return sum(map(self.size_of, shard_ids))

    def places_of(self, index: int) -> Iterator[tuple[int, int]]:
        """Yield shard id and row of each image of the class `classes[index]`, in order."""
        first = index * self.images_per_class
        return (divmod(image, self.shard_size) for image in range(first, first + self.images_per_class))


def make_plan(config: SynthesisConfig, num_classes: int) -> ShardPlan:
    """Return the plan of a dataset.

    Args:
        config: settings of the dataset.
        num_classes: number of the teacher's classes.

    Raises:
        ConfigError: the teacher does not have one of the classes, or there are more shards than ids.
    """
    classes = list_classes(config.classes, num_classes)
    num_shards = -(-len(classes) * config.images_per_class // config.shard_size)
    if num_shards > _MOST_SHARDS:
        raise ConfigError(
            f"images_per_class {config.images_per_class} of {len(classes)} classes in shards of shard_size "
            f"{config.shard_size} are {num_shards} shards, and at most {_MOST_SHARDS} can be numbered: make fewer "
            "images, or larger shards"
        )
    return ShardPlan(classes, config.images_per_class, config.shard_size)


def plan_shards(config: SynthesisConfig, *, num_classes: int | None = None) -> list[Shard]:
    """Return the shards of a dataset, as rows for `ray.data.from_items`.

    The shards depend only on classes, counts and shard size; see `ShardPlan`, which computes single ones.

    Args:
        config: settings of the dataset.
        num_classes: number of the teacher's classes; by default the teacher is loaded to find out.

    Raises:
        ConfigError: as `make_plan`.
        ModelError, CheckpointError: the teacher cannot be loaded.
    """
    if num_classes is None:
        num_classes = len(load_model(config.teacher).class_names)
    return list(make_plan(config, num_classes))
