"""Describe the images at a URI before they are read."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from pipeline.dataset import store
from pipeline.dataset.units import ImageFiles, Unit
from pipeline.errors import DatasetError


class Arrivals(Protocol):
    """Files of a dataset that is being made."""

    def wait_for(self, uri: str) -> None:
        """Wait until a file is there.

        Raises:
            PipelineError: the file will not be made.
        """
        ...


@dataclass(frozen=True)
class Source:
    """Images at a URI, found to be readable.

    Attributes:
        uri: location, as `storage.absolute` returns it.
        columns: name → Arrow type as it will be read; for `image`, encoded bytes.
        class_names: names of labels 0, 1, 2, ...; None if they are not known.
        synthetic: whether the images were made by inversion. Their pixels then lie on the teacher's patch grid, and
            must not be resized.
        units: rows or files that are read together.
        manifest: manifest of a synthetic dataset; None if there is none.
        qualifier: prefix of the image ids, if several datasets are read together.
        arrivals: what readers wait with for the files of a dataset that is still being made; None for any other.
        likely_labels: name and type of a column that may be meant as `label`, or of a `label` that is no number, for a
            message; None if there is neither, or a `label` that is read.

    Raises:
        DatasetError: two classes have one name.
    """

    uri: str
    columns: dict[str, pa.DataType]
    class_names: list[str] | None
    synthetic: bool
    units: list[Unit]
    manifest: dict[str, Any] | None = None
    qualifier: str = ""
    arrivals: Arrivals | None = None
    likely_labels: str | None = None

    def __post_init__(self) -> None:
        repeated = [name for name, times in Counter(self.class_names or ()).items() if times > 1]
        if repeated:
            raise DatasetError(f"{self.uri!r} has more than one class named {repeated[0]!r}: give each its own name")

    @property
    def of_folders(self) -> bool:
        """Whether the classes are folders, whose order is not stated anywhere."""
        return any(isinstance(unit, ImageFiles) for unit in self.units)

    @property
    def num_rows(self) -> int:
        return sum(unit.num_rows for unit in self.units)

    def without_units(self) -> "Source":
        """Return a copy without units, for workers that get their units separately."""
        return replace(self, units=[], class_names=None, manifest=None)

    def check_complete(self) -> None:
        """Refuse a synthetic dataset that is unfinished.

        Raises:
            DatasetError: shards are missing.
        """
        manifest = self.manifest or {}
        wanted = manifest.get("num_images", self.num_rows)
        if self.num_rows < wanted:
            maker = "synthesis" if manifest.get(store.COMPACTION) is None else "compaction"
            raise DatasetError(
                f"synthetic dataset {self.uri!r} is incomplete: it holds {self.num_rows} of {wanted} images; "
                f"run its {maker} again, or set allow_incomplete to take what there is"
            )
