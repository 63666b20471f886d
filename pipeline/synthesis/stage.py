"""Inversion as a stage of a Ray Data pipeline, without files."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipeline.cluster import connect
from pipeline.errors import DatasetError
from pipeline.synthesis.actor import Inverter
from pipeline.synthesis.columns import arrow_column, common_schema, plain_table, with_schema
from pipeline.synthesis.config import SynthesisConfig, located
from pipeline.synthesis.pool import pool_options
from pipeline.synthesis.rows import IMAGE_IDS, LABELS, NEEDED, SHARD_ID, RowReader, columns_of
from pipeline.synthesis.timeouts import set_timeouts

Shards = ray.data.Dataset | Sequence[Mapping[str, Any]]


def build_inverter(config: SynthesisConfig) -> Callable[[Shards], ray.data.Dataset]:
    """Return a stage that turns shards into images: `build_inverter(config)(plan_shards(config))`.

    The stage takes a Ray Dataset of rows as `Inverter` describes them, or a list of such rows, and runs on the pool of
    actors in `config.pool`. Local paths in the config are relative to the driver's working folder, and `config.output`
    is not used. Consume the dataset inside `pipeline.cluster.own_errors()` to get errors of this software with their
    own types.

    Args:
        config: settings of the images.

    Raises:
        ConfigError: by the stage, if the cluster is too small for the pool.
        DatasetError: by the stage, if a row is invalid, an id comes twice, or the values of a further column have no
            common type. To find out, a dataset of rows is computed when the stage gets it, and Ray keeps it. Labels
            that the teacher does not have raise when the images are consumed.
    """
    config = located(config)

    def invert(shards: Shards) -> ray.data.Dataset:
        connect()
        rows = _from_dataset(shards) if isinstance(shards, ray.data.Dataset) else _from_list(shards)
        images = rows.map_batches(
            Inverter,
            fn_constructor_args=(config,),
            batch_size=1,
            # NumPy batches would turn missing values into NaN, and whole numbers beside them into floats.
            batch_format="pyarrow",
            **pool_options(config, rows.count()),
        )
        set_timeouts(images.context, config.pool)
        images.context.raise_original_map_exception = True
        return images

    return invert


def _from_list(shards: Sequence[Mapping[str, Any]]) -> ray.data.Dataset:
    """Make a dataset with one row per block: a block of many shards would keep one actor busy, and the others idle."""
    if not len(shards):
        raise DatasetError("there are no shards to invert: the list is empty")
    columns = columns_of(shards)
    rows = RowReader().read(columns)
    # All rows together: converted one at a time, each row could get types of its own.
    further = {name: arrow_column(name, values) for name, values in columns.items() if name not in NEEDED}
    needed = {
        SHARD_ID: [row.shard_id for row in rows],
        LABELS: [row.labels for row in rows],
        IMAGE_IDS: [row.image_ids for row in rows],
    }
    table = pa.table({**needed, **further})
    # `take` copies the row; a slice would bring the whole table with it.
    return ray.data.from_arrow([table.take([row]) for row in range(len(rows))])


def _from_dataset(shards: ray.data.Dataset) -> ray.data.Dataset:
    """Return a dataset with one row per block and one type per column, which may differ between the blocks given."""
    shards.context.raise_original_map_exception = True
    blocks = shards.map_batches(plain_table, batch_size=None, batch_format="pyarrow").materialize()
    if not blocks.count():
        raise DatasetError("there are no shards to invert: the dataset is empty")
    reader, schemas = RowReader(), []
    references: Any = blocks.to_arrow_refs()
    for reference in references:
        block: pa.Table = ray.get(reference)
        if block.num_rows:
            reader.read(block)
            schemas.append(block.schema)
    schema = common_schema(schemas)
    alike = blocks.map_batches(partial(with_schema, schema=schema), batch_size=None, batch_format="pyarrow")
    # Computed now, because later the actors may hold the CPUs that it needs.
    return alike.repartition(target_num_rows_per_block=1).materialize()
