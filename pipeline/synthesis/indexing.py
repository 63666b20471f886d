"""Keep the index of a dataset while its parts are made."""

import time
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from pipeline import storage
from pipeline.dataset.index import (
    KNOWN_BY_MAKER,
    complete_index,
    index_table,
    last_rows,
    load_index,
    read_index,
    write_index,
)
from pipeline.errors import DatasetError, one_line
from pipeline.log import logger
from pipeline.synthesis.outcome import Outcome

# Seconds between two writes. Readers open parts themselves that are newer than the index.
_INTERVAL_S = 60.0


class RunningIndex:
    """The index of a dataset, with the parts that this run makes.

    Args:
        output: folder of the dataset.
        digest: digest of the dataset.
    """

    def __init__(self, output: str, digest: str) -> None:
        self._output, self._digest = output, digest
        self._stored = self._table = read_index(output, digest)
        self._new: list[dict[str, Any]] = []
        self._unsaved = False
        self._written = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Add the part of a shard that this run made, and write the index if that is due."""
        if outcome.is_made:
            # If the first outcome was lost with its worker, nobody knows how the part was made.
            unknown = {} if outcome.seconds else dict.fromkeys(KNOWN_BY_MAKER)
            self._new.append({**outcome.as_row(), **unknown, "num_rows": outcome.num_images})
        if time.monotonic() - self._written >= _INTERVAL_S:
            self.save()

    def save(self) -> None:
        """Write the index, with the rows that other runs with the same output have written in the meantime.

        Where storage does not answer, a line says so, and the next time is soon enough.
        """
        if self._new or self._unsaved:
            self._written = time.monotonic()
            try:
                self._write(self._merged())
            except DatasetError as error:
                self._warn("read", error)

    def _merged(self) -> pa.Table:
        """Return the index in the output with this run's parts.

        Raises:
            DatasetError: storage kept failing to answer; written without it, the index would lose what it says.
        """
        return last_rows(pa.concat_tables([load_index(self._output, self._digest), self.table()]))

    def table(self) -> pa.Table:
        """Return the index so far."""
        if self._new:
            self._table = pa.concat_tables([self._table, index_table(self._new)]).combine_chunks()
            self._new, self._unsaved = [], True
        return self._table

    def makers(self) -> dict[int, str | None]:
        """Return shard id → the worker that made it, if that is known."""
        table = self.table()
        return dict(zip(table["shard_id"].to_pylist(), table["worker"].to_pylist(), strict=True))

    def complete(self, sizes: Mapping[int, int]) -> pa.Table:
        """Write the index with every part that is there, and return it.

        Args:
            sizes: shard id → size of its part in `data/`, in bytes.
        """
        try:
            table = complete_index(self._output, self._digest, self._merged(), sizes)
        except DatasetError as error:
            self._warn("read", error)
            return self.table()
        if not table.equals(self._stored):
            self._write(table)
        return table

    def _write(self, table: pa.Table) -> None:
        try:
            storage.with_retries(lambda: write_index(self._output, self._digest, table))
            self._stored, self._unsaved = table, False
        except OSError as error:
            self._warn("written", error)

    def _warn(self, done: Literal["read", "written"], error: Exception) -> None:
        # Images are not lost: readers open parts that have no row. What only the worker that made a part knew of it
        # (`KNOWN_BY_MAKER`) is lost with its row.
        more = ", and is not written" if done == "read" else ""
        logger.warning(f"the index of {self._output!r} could not be {done}{more}: {one_line(error)}")
