"""Inversion as a stage of one's own Ray Data pipeline, with no file written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray.data

from pipeline.cluster import connect
from pipeline.errors import DatasetError
from pipeline.synthesis.actor import Inverter
from pipeline.synthesis.pool import pool_options
from pipeline.synthesis.rows import RowReader
from pipeline.synthesis.shards import SynthesisConfig, located

Shards = ray.data.Dataset | Sequence[Mapping[str, Any]]


def build_inverter(config: SynthesisConfig) -> Callable[[Shards], ray.data.Dataset]:
    """Return a stage that turns shards into images: `build_inverter(config)(plan_shards(config))`.

    The stage takes a Ray Dataset of rows as `Inverter` describes them, or a list of such rows, and runs on the pool of
    actors that `config.pool` describes. Local paths in the config are taken from the driver's working folder, and
    `config.output` is not used. Errors of this software come back as what they are where the dataset is consumed within
    `pipeline.cluster.own_errors()`.

    Args:
        config: of the images.

    Raises:
        ConfigError: by the stage, if the cluster is too small for the pool.
        DatasetError: by the stage, if a row of a list is not as it should be, or an id is repeated in it. Rows of a
            dataset are checked when it is consumed, each actor those that it gets.
    """
    config = located(config)

    def invert(shards: Shards) -> ray.data.Dataset:
        fixed = connect()
        if isinstance(shards, ray.data.Dataset):
            # A block of many shards would keep one actor busy, and the others idle.
            rows, most = shards.repartition(target_num_rows_per_block=1), config.pool.max_size
        else:
            rows, most = _from_list(shards), len(shards)
        images = rows.map_batches(
            Inverter, fn_constructor_args=(config,), batch_size=1, **pool_options(config, most, fixed=fixed)
        )
        images.context.wait_for_min_actors_s = config.pool.start_timeout_s
        images.context.execution_no_progress_timeout_s = config.pool.no_progress_timeout_s
        images.context.raise_original_map_exception = True
        return images

    return invert


def _from_list(shards: Sequence[Mapping[str, Any]]) -> ray.data.Dataset:
    if not shards:
        raise DatasetError("there are no shards to invert: the list is empty")
    reader = RowReader()
    for row in shards:
        reader.read({name: [value] for name, value in row.items()})
    return ray.data.from_items([dict(row) for row in shards], override_num_blocks=len(shards))
