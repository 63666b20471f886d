"""Turn failures of writing artifacts into errors: operators that a format lacks, and full disks."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import FormError, ModelError, one_line
from pipeline.transient import causes

# How torch's exporter to ONNX and its compiler name an operator that they have no form of.
_LACKING = {
    *("DispatchError", "UnsupportedOperatorError"),
    *("MissingOperatorWithDecomp", "MissingOperatorWithoutDecomp"),
}
_MOST = 300


def not_written(message: str, error: Exception) -> ModelError:
    """Return the error to raise where a library could not write a program in a format.

    It is a `FormError` only where the library says that it lacks an operator: whatever else it says may be for want of
    memory, disk space, or a compiler that was killed.
    """
    # torch's compiler keeps the error that it wraps in this attribute.
    chain = causes(error, wrapped_as="inner_exception")
    lacking = next((cause for cause in chain if type(cause).__name__ in _LACKING), None)
    if lacking is not None:
        return FormError(f"{message}: {one_line(lacking, limit=_MOST)}")
    return ModelError(f"{message}: {one_line(error, limit=_MOST)}")


class _Archive(io.RawIOBase):
    """A file that torch writes an archive to; an error of the disk is kept until torch is done."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, content: Any) -> int:
        if self.error is None:
            try:
                self._file.write(content)
            except OSError as error:
                self.error = error
        return len(content)

    def close(self) -> None:
        super().close()
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error


@contextmanager
def new_archive(path: str | Path) -> Iterator[io.RawIOBase]:
    """Yield a file for torch to write an archive to.

    Where torch opens the file itself, a full disk ends the whole process: its writer throws once more when it is
    destroyed.

    Raises:
        OSError: the archive could not be written.
    """
    archive = _Archive(Path(path))
    try:
        yield archive
    finally:
        archive.close()
    if archive.error is not None:
        raise archive.error
