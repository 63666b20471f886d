"""Parquet files that stay open while several of their row groups are read."""

from collections import OrderedDict
from typing import IO

import pyarrow.parquet as pq

from pipeline import storage

# Files kept open while they are read in turns, as in a shuffled epoch; each holds its footer and some megabytes.
_MOST_OPEN = 4


class OpenFiles:
    """Opens each file once, as long as it is among those used last. One thread may use it at a time.

    The footer of a merged file describes hundreds of parts: to read it again for each of them would take longer than
    the parts themselves.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[str, tuple[IO[bytes], pq.ParquetFile]] = OrderedDict()

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            self._close_oldest()

    def open(self, uri: str) -> pq.ParquetFile:
        """Return a file, opened now or before.

        Raises:
            OSError, pyarrow.ArrowException: the file cannot be opened, or is no Parquet file. `storage.read_errors`
                lists what drivers raise besides.
        """
        if uri not in self._files:
            file = storage.open_file(uri)
            try:
                self._files[uri] = file, pq.ParquetFile(file)
            except BaseException:
                file.close()
                raise
            if len(self._files) > _MOST_OPEN:
                self._close_oldest()
        self._files.move_to_end(uri)
        return self._files[uri][1]

    def _close_oldest(self) -> None:
        _, (file, parquet) = self._files.popitem(last=False)
        parquet.close()
        file.close()
