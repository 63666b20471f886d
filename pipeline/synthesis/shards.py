"""Plan the shards of a dataset."""

from typing import TypedDict

from pipeline.models import load_model
from pipeline.synthesis.classes import list_classes
from pipeline.synthesis.config import SynthesisConfig


class Shard(TypedDict):
    """Images that are made together and stored in one part file; a row of a Ray Dataset.

    Attributes:
        shard_id: number of the part.
        labels: class of each image.
        image_ids: name of each image.
    """

    shard_id: int
    labels: list[int]
    image_ids: list[str]


def plan_shards(config: SynthesisConfig, *, num_classes: int | None = None) -> list[Shard]:
    """Return the shards of a dataset, as rows for `ray.data.from_items`.

    Images are ordered by class, and each shard takes the next `shard_size` of them, so the shards depend only on
    classes, counts and shard size.

    Args:
        config: of the dataset.
        num_classes: of the teacher; by default the teacher is loaded to find out.

    Raises:
        ConfigError: the teacher does not have one of the classes.
        ModelError, CheckpointError: the teacher cannot be loaded.
    """
    if num_classes is None:
        num_classes = len(load_model(config.teacher).class_names)
    classes = list_classes(config.classes, num_classes)
    images = [(label, f"{label:05d}-{number:06d}") for label in classes for number in range(config.images_per_class)]
    return [
        {
            "shard_id": shard_id,
            "labels": [label for label, _ in images[start : start + config.shard_size]],
            "image_ids": [image_id for _, image_id in images[start : start + config.shard_size]],
        }
        for shard_id, start in enumerate(range(0, len(images), config.shard_size))
    ]
