"""Check a synthesis before it starts: manifest, shards, and what is done already."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipeline import storage
from pipeline.config import digest as digest_of
from pipeline.config import to_dict
from pipeline.credentials import redacted
from pipeline.dataset import schema, store
from pipeline.dataset.damage import damaged_parts
from pipeline.dataset.index import unindexed
from pipeline.errors import DatasetError
from pipeline.inversion import AnyTeacher
from pipeline.inversion.basis import check_falloff
from pipeline.log import announce
from pipeline.models import LoadedModel
from pipeline.outputs import check_same_settings
from pipeline.outputs.owners import check_output
from pipeline.synthesis.config import SynthesisConfig, located
from pipeline.synthesis.identity import identity
from pipeline.synthesis.networks import load_networks
from pipeline.synthesis.shards import ShardPlan, make_plan

# Libraries whose versions may affect pixels or bytes.
_LIBRARIES = ("numpy", "pillow", "pyarrow", "ray", "timm", "torch")


@dataclass(frozen=True)
class SynthesisPlan:
    """A synthesis whose settings, teacher and output were checked.

    Attributes:
        config: settings with absolute local paths, because actors have other working folders.
        digest: SHA-256, in hex, of everything that decides the dataset.
        manifest: the output's manifest, as it is or will be.
        shards: all shards of the dataset.
        num_patches: number of patches of an image that the teacher reads.
        notice: message for the user about the teacher; None if there is none.
        progress: which shards the output holds already, and which failed.
    """

    config: SynthesisConfig
    digest: str
    manifest: dict[str, Any]
    shards: ShardPlan
    num_patches: int
    notice: str | None
    progress: store.Progress

    @property
    def to_do(self) -> list[int]:
        """Ids of the shards to make, in order: those without a part and, unless `retry_failed`, without a failure."""
        left_out = self.progress.parts if self.config.retry_failed else self.progress.parts | self.progress.failed
        order = self.shards.shuffled(self.config.seed) if self.is_shuffled else range(len(self.shards))
        return [shard_id for shard_id in order if shard_id not in left_out]

    @property
    def is_shuffled(self) -> bool:
        """Whether shards are made in an order that mixes their classes."""
        return self.config.shard_order == "shuffled"

    def about_failed(self) -> str | None:
        """Say what becomes of shards that failed before; None if there are none."""
        if not self.progress.failed:
            return None
        count = f"{len(self.progress.failed)} of {len(self.shards)} shards failed before"
        if self.config.retry_failed:
            return f"{count}, and are tried again (`--retry_failed false` leaves them)"
        return f"{count}, and are left as they are (`--retry_failed true` tries them again)"


def plan_synthesis(config: SynthesisConfig, loaded_teacher: LoadedModel | None = None) -> SynthesisPlan:
    """Check on the driver everything that can be checked before the work, and find out what is left to do.

    Args:
        config: settings of the synthesis.
        loaded_teacher: the config's teacher, if the caller has loaded it; as `teacher` of `load_networks`.

    Raises:
        ConfigError, ModelError, CheckpointError: settings or teacher are impossible.
        DatasetError: the output holds another dataset, or cannot be read.
    """
    networks = load_networks(config, loaded_teacher)
    announce(networks.notices())
    loaded = networks.teacher
    shards = make_plan(config, len(loaded.class_names))
    inverted = networks.make_teacher(config.inversion)
    config.inversion.check(inverted.num_patches)
    if config.inversion.basis == "cosine":
        check_falloff(inverted.image_size, config.inversion.falloff)
    announce(config.inversion.notices(inverted.num_patches))
    facts = identity(config, networks)
    new = _manifest(config, loaded, inverted, facts, shards)
    manifest, progress = storage.with_retries(lambda: _find(config.output, new, len(shards)))
    return SynthesisPlan(
        located(config), manifest["digest"], manifest, shards, inverted.num_patches, inverted.notice, progress
    )


def _find(output: str, new: dict[str, Any], num_shards: int) -> tuple[dict[str, Any], store.Progress]:
    """Return the manifest in the output, the new one if it has none, and what the output holds already.

    Raises:
        DatasetError: it holds another dataset or damaged parts, or cannot be read.
    """
    manifest = _same_dataset(output, new)
    progress = store.read_progress(output, num_shards, manifest["digest"])
    _check_parts(output, manifest["digest"], progress)
    return manifest, progress


def _check_parts(output: str, digest: str, progress: store.Progress) -> None:
    """Check that the files of done shards are their parts.

    Raises:
        DatasetError: a part is truncated, or is another file under its name.
    """
    damaged = damaged_parts(output, digest, unindexed(output, digest, progress.parts))
    if damaged:
        shard_id, reason = next(iter(damaged.items()))
        more = f" ({len(damaged) - 1} more parts are damaged)" if len(damaged) > 1 else ""
        raise DatasetError(f"shard {shard_id} has a damaged part, delete it to make it again: {reason}{more}")


def _manifest(
    config: SynthesisConfig,
    loaded: LoadedModel,
    teacher: AnyTeacher,
    facts: dict[str, Any],
    shards: ShardPlan,
) -> dict[str, Any]:
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "digest": digest_of(facts),
        "identity": facts,
        "config": redacted(to_dict(config)),
        "teacher": {
            "name": loaded.name,
            "weights_sha256": loaded.digest,
            "ranking": teacher.resolve_ranking(config.inversion),
            "notice": teacher.notice,
        },
        "class_names": loaded.class_names,
        "image_size": list(loaded.input_size),
        "grid_size": teacher.grid_size,
        "patch_size": teacher.patch_size,
        "num_classes": len(facts["classes"]),
        "num_images": shards.num_images,
        "num_shards": len(shards),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


def _same_dataset(output: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest in the output; the given one if the output is new.

    Raises:
        DatasetError: the output holds another dataset; the message names what differs.
    """
    check_output(output, "synthesize")
    if not storage.exists(store.manifest_uri(output)):
        return manifest
    there = store.read_manifest(output)
    check_same_settings(output, "synthesize", there, manifest)
    return there
