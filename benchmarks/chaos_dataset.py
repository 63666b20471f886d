"""The dataset of `benchmarks.chaos`: how it is made undisturbed, and how another one differs from it."""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from pipeline import storage
from pipeline.config import from_dict
from pipeline.dataset import store
from pipeline.dataset.part_files import DATA
from pipeline.models import save_model
from pipeline.synthesis import SynthesisConfig
from pipeline.synthesis.plan import plan_synthesis
from pipeline.synthesis.writer import PartWriter

_CLASSES = 10
_IMAGES_PER_SHARD = 2
# About a third of a second for a shard.
_ITERATIONS = 60
_CHECKPOINT_MINUTES = 0.001


class Difference(NamedTuple):
    """Names of files that are missing or differ, and of files that should not be there."""

    lost: list[str]
    doubled: list[str]


def write_teacher(folder: Path) -> None:
    """Save a random ViT of 10 classes that reads 32 × 32 pixels in 16 patches."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=_CLASSES, **sizes)
    half = (0.5,) * 3
    save_model(model, folder, class_names=[f"class {label}" for label in range(_CLASSES)], mean=half, std=half)


def settings(teacher: Path, output: str, num_shards: int) -> dict[str, Any]:
    """Return the settings of a dataset of at least so many shards, as a config file has them."""
    return {
        "teacher": {"name": f"local-dir:{teacher}"},
        "output": output,
        "images_per_class": -(-num_shards * _IMAGES_PER_SHARD // _CLASSES),
        "shard_size": _IMAGES_PER_SHARD,
        "inversion": {"iterations": _ITERATIONS, "stop_steps": [10, 20], "stop_fractions": [0.3, 0.3]},
        "pool": {"min_size": 1, "max_size": 2},
        # Several a shard: whoever makes a shard after a worker that died goes on from one.
        "checkpoint_minutes": _CHECKPOINT_MINUTES,
    }


def make_undisturbed(values: dict[str, Any]) -> None:
    """Make a dataset's parts and manifest in this process."""
    plan = plan_synthesis(from_dict(SynthesisConfig, values))
    store.write_manifest(plan.config.output, plan.manifest)
    writer = PartWriter(plan.config, plan.digest)
    for shard in plan.shards:
        writer.write_shard(shard["shard_id"], shard["labels"], shard["image_ids"])


def compare(output: str, undisturbed: str) -> Difference:
    """Compare parts by their bytes, and manifests but for the output that they name."""
    expected, found = _parts(undisturbed), _parts(output)
    lost = [name for name, content in expected.items() if found.get(name) != content]
    if _manifest(output) != _manifest(undisturbed):
        lost.append(store.MANIFEST)
    # A record of a failure, a checkpoint, or anything else that a run should have cleaned up, is too much as well.
    left = ("failed/", "checkpoints/", ".")
    beside = [name for name, _ in storage.find_tree(output)[0] if name.startswith(left)]
    return Difference(lost, [*sorted(found.keys() - expected.keys()), *beside])


def _parts(output: str) -> dict[str, bytes]:
    data = storage.join(output, DATA)
    return {name: storage.read_bytes(storage.join(data, name)) for name, _ in storage.find_tree(data)[0]}


def _manifest(output: str) -> dict[str, Any] | None:
    uri = store.manifest_uri(output)
    if not storage.exists(uri):
        return None
    manifest = storage.read_json(uri)
    return {**manifest, "config": {**manifest["config"], "output": None}}
