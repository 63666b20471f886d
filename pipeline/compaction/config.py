"""Settings of a compaction."""

from dataclasses import dataclass

from pipeline.checks import check_range, check_types
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompactionConfig:
    """Merge the parts of a synthetic dataset into larger files, in another folder.

    Args:
        images: the synthetic dataset, at any fsspec URI. It is not modified.
        output: folder of the compacted dataset, at any fsspec URI.
        file_mb: largest size of a file in MB, 10^6 bytes; a larger part becomes a file of its own.
        allow_incomplete: accept a dataset with missing shards; the compacted dataset lacks them too.
    """

    images: str
    output: str
    file_mb: float = 256.0
    allow_incomplete: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("images", "output"):
            if not getattr(self, name):
                raise ConfigError(f"{name} must name a folder, it is empty")
        check_range("file_mb", self.file_mb, 0, 10**6, open_low=True)

    @property
    def file_bytes(self) -> int:
        """Largest size of a file."""
        return round(self.file_mb * 10**6)
