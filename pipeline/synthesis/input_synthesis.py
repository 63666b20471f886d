"""Images of a job that are given by the config of their synthesis instead of a dataset."""

import time
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa

from pipeline.config import parse_config
from pipeline.dataset import schema, store
from pipeline.dataset.collection import ImageCollection
from pipeline.dataset.discovery import find_source
from pipeline.dataset.part_files import DATA, part_name
from pipeline.dataset.source import Source
from pipeline.dataset.units import RowRange, Unit
from pipeline.errors import ConfigError, IncompleteError, first_few
from pipeline.log import logger
from pipeline.models import LoadedModel, ModelConfig
from pipeline.outputs.owners import check_place
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.plan import SynthesisPlan, plan_synthesis
from pipeline.synthesis.run import run_plan
from pipeline.tracking.tracker import check_tracking

_CONFIG_SUFFIXES = (".yaml", ".yml")


def names_config(images: Any) -> TypeGuard[str]:
    """Return whether images are given by the file of a synthesis config, and not by the URI of a dataset.

    Raises:
        ConfigError: such a file is one of several in a list.
    """
    if isinstance(images, str):
        return images.lower().endswith(_CONFIG_SUFFIXES)
    listed = [getattr(each, "uri", each) for each in images]
    configs = [uri for uri in listed if names_config(uri)]
    if configs:
        raise ConfigError(
            f"images names the synthesis config {configs[0]!r} in a list: give it alone, or the dataset that it makes"
        )
    return False


def read_config(path: str) -> SynthesisConfig:
    """Read the config of the images of another job.

    Raises:
        ConfigError: it cannot be read, or makes no images.
    """
    try:
        config = parse_config(SynthesisConfig, ["--config", path])
    except ConfigError as error:
        raise ConfigError(f"images: {path!r}, the config of their synthesis: {error}") from error
    if config.dry_run:
        raise ConfigError(f"images: {path!r} has dry_run, with which no images are made")
    check_place(config.output, shared=True)
    return config


def make_first(to_make: "ImagesToMake", *, allow_incomplete: bool) -> str:
    """Make the whole dataset in this process; return its URI.

    Raises:
        IncompleteError: shards failed.
        PipelineError: as `synthesize`.
    """
    config = to_make.config
    summary = run_plan(config, to_make.plan, time.monotonic())
    if not summary["complete"] and not allow_incomplete:
        raise IncompleteError(
            f"images: {len(summary['failed'])} shards of {config.output!r} failed; run this job again to retry them, "
            "or set allow_incomplete to go on without them"
        )
    return config.output


@dataclass(frozen=True)
class ImagesToMake:
    """Images of a job that are given by the config of their synthesis.

    Attributes:
        path: path of the config.
        config: settings as read from that file.
        plan: plan of the synthesis.
    """

    path: str
    config: SynthesisConfig
    plan: SynthesisPlan


def plan_images(path: str, loaded: tuple[ModelConfig, LoadedModel] | None = None) -> ImagesToMake:
    """Check the synthesis of a job's images, before either begins.

    Args:
        path: path of the config of the synthesis.
        loaded: settings and model of the job's own teacher, so that it is not loaded again where the images come from
            it too.

    Raises:
        PipelineError: as `plan_synthesis` and `read_config`.
    """
    config = read_config(path)
    check_tracking(config.tracking)
    teacher = loaded[1] if loaded is not None and loaded[0] == config.teacher else None
    return ImagesToMake(path, config, plan_synthesis(config, teacher))


def check_all_come(to_make: ImagesToMake) -> None:
    """Refuse a config that leaves out images which failed before.

    Raises:
        ConfigError: the config leaves such images out.
    """
    plan = to_make.plan
    if plan.progress.failed and not plan.config.retry_failed:
        raise ConfigError(
            f"images: {to_make.path!r} has retry_failed false, and {plan.config.output!r} lacks shards that failed "
            f"before ({first_few(map(str, plan.progress.failed))}): set it to true, or give that dataset as images "
            "with allow_incomplete"
        )


def leaving_failed(to_make: ImagesToMake, output: str) -> ImagesToMake:
    """Leave shards alone that failed before, for a job that was begun without their images, and say so.

    With more images than it was begun with, it would be another one.

    Args:
        to_make: images that the job was to make.
        output: folder of the job.
    """
    plan, config = to_make.plan, to_make.config
    if plan.progress.failed and config.retry_failed:
        logger.info(
            f"images: {len(plan.progress.failed)} shards of {config.output!r} that failed before are not tried again, "
            f"because {output!r} was begun without them: give another output to have them tried"
        )
    config, planned = (replace(each, retry_failed=False) for each in (config, plan.config))
    return replace(to_make, config=config, plan=replace(plan, config=planned))


def planned_images(to_make: ImagesToMake, *, split: str | None = None) -> ImageCollection:
    """Return all images of a dataset, whether they are there yet or not, in the order in which they are made.

    Its one source has the shards by their numbers.

    Raises:
        ConfigError: one of several splits is asked for.
    """
    if split is not None:
        raise ConfigError(f"images_split is {split!r}, and images that are made have no splits")
    plan = to_make.plan
    source = _planned_source(plan)
    if plan.progress.complete:
        # Sizes decide which row groups are cut, and with that the order of streamed images: it must stay as planned.
        source = replace(find_source(plan.config.output), units=source.units)
    return ImageCollection((source,), [(0, source.units[number]) for number in plan.shards.shuffled(plan.config.seed)])


def _planned_source(plan: SynthesisPlan) -> Source:
    manifest, output = plan.manifest, plan.config.output
    image_bytes = int(np.prod(manifest["image_size"]))
    units: list[Unit] = []
    for shard_id in range(len(plan.shards)):
        num_rows, name = plan.shards.size_of(shard_id), part_name(shard_id, plan.digest)
        uri = store.part_uri(output, shard_id, plan.digest)
        units.append(RowRange(uri, f"{DATA}/{name}", 0, 0, 0, num_rows, num_rows * image_bytes))
    return Source(output, {**schema.COLUMNS, "image": pa.binary()}, manifest["class_names"], True, units, manifest)
