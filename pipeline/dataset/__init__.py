"""Datasets as files: the Parquet contract, progress, and reading with Ray Data."""

from typing import TYPE_CHECKING

from pipeline.dataset.store import write_images
from pipeline.lazy import lazy_exports

if TYPE_CHECKING:
    from pipeline.dataset.reader import read_images

__all__ = ["read_images", "write_images"]

# The reader imports Ray Data: a second and 100 MB, which `jobs.status` does without.
__getattr__ = lazy_exports(__name__, {"read_images": "reader"})
