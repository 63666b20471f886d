"""Datasets as files: the Parquet contract, progress, and reading with Ray Data."""

from typing import TYPE_CHECKING, Any

from pipeline.dataset.store import write_images

if TYPE_CHECKING:
    from pipeline.dataset.reader import read_images

__all__ = ["read_images", "write_images"]


def __getattr__(name: str) -> Any:
    # The reader imports Ray Data, which takes seconds; the status of a dataset does not need it.
    if name == "read_images":
        from pipeline.dataset.reader import read_images

        return read_images
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
