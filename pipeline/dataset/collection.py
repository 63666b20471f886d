"""Read several datasets as one, with image ids that say which dataset they are from."""

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import digest as digest_of
from pipeline.dataset.discovery import find_source, is_synthetic
from pipeline.dataset.rows import read_first
from pipeline.dataset.source import Source
from pipeline.dataset.units import Unit
from pipeline.errors import DatasetError

_QUALIFIER_LENGTH = 8


@dataclass(frozen=True)
class ImageCollection:
    """Images of one or several sources.

    Attributes:
        sources: at least one source. If there are several, each has a `qualifier`, with which its image ids begin.
        units: pairs in reading order: index of a source, and rows or files of it that are read together.
    """

    sources: tuple[Source, ...]
    units: list[tuple[int, Unit]]

    @classmethod
    def of(cls, *sources: Source) -> "ImageCollection":
        """Return all rows of some sources, one source after another."""
        return cls(sources, [(number, unit) for number, source in enumerate(sources) for unit in source.units])

    @property
    def num_rows(self) -> int:
        return sum(unit.num_rows for _, unit in self.units)

    @property
    def uri(self) -> str:
        """Return the URIs as one text, for messages."""
        return ", ".join(source.uri for source in self.sources)

    def select(self, rows: Sequence[int]) -> "ImageCollection":
        """Return the units that hold the given rows, which are numbers in reading order, ascending.

        In each row group all rows between the first and the last are kept, because they are read together.
        """
        selected: list[tuple[int, Unit]] = []
        first, position = 0, 0
        for number, unit in self.units:
            stop = bisect.bisect_left(rows, first + unit.num_rows, position)
            if stop > position:
                selected.append((number, unit.select([row - first for row in rows[position:stop]])))
            first, position = first + unit.num_rows, stop
        return ImageCollection(self.sources, selected)

    def check_complete(self) -> None:
        """Refuse a synthetic dataset that is unfinished.

        Raises:
            DatasetError: shards are missing in one of the sources.
        """
        for source in self.sources:
            source.check_complete()


def find_images(
    uris: str | Sequence[str],
    *,
    split: str | None = None,
    extra_columns: Sequence[str] = (),
    times: Sequence[int] | None = None,
) -> ImageCollection:
    """Find out what one or several URIs hold, see `find_source`.

    Every synthesis numbers its images from 0, so the image ids of several datasets are qualified by their dataset:
    `3fa8c01e/tench-000007`. The qualifier derives from the dataset's content, so moving it changes no id.

    Args:
        uris: one or several locations, each as `find_source` takes it.
        split: name of the split to read from every dataset that is not synthetic.
        extra_columns: columns of Parquet files to read besides those of the contract.
        times: number of times that each dataset is read; by default once. Image ids of a second reading begin with
            `3fa8c01e.2/`, and so on.

    Raises:
        DatasetError: as `find_source`; or there is no URI, or the same dataset twice.
    """
    if not isinstance(uris, list | tuple):
        # One location, or found out to be none.
        single: Any = uris
        return ImageCollection.of(find_source(single, extra_columns, split=split))
    if not uris:
        raise DatasetError("images is an empty list: name at least one dataset")
    if len(uris) == 1 and times in (None, [1]):
        return find_images(uris[0], split=split, extra_columns=extra_columns)
    splits = [None if split is None or is_synthetic(uri) else split for uri in uris]
    sources = [find_source(uri, extra_columns, split=own) for uri, own in zip(uris, splits, strict=True)]
    return ImageCollection.of(*_qualify(sources, times or [1] * len(uris)))


def _qualify(sources: Sequence[Source], times: Sequence[int]) -> Iterator[Source]:
    """Yield the sources, each as often as it is to be read and with a qualifier of its own.

    Raises:
        DatasetError: two sources are the same dataset.
    """
    found: dict[str, Source] = {}
    for source, readings in zip(sources, times, strict=True):
        qualifier = _identify(source)[:_QUALIFIER_LENGTH]
        if qualifier in found:
            raise DatasetError(f"{found[qualifier].uri!r} and {source.uri!r} are the same dataset: read it once")
        found[qualifier] = source
        yield replace(source, qualifier=qualifier)
        for reading in range(2, readings + 1):
            yield replace(source, qualifier=f"{qualifier}.{reading}")


def _identify(source: Source) -> str:
    facts = source_facts(source)
    if facts["dataset"] is not None:
        return facts["dataset"]
    # Two folders may have the same listing (`0.bmp`, `1.bmp`) and hold different images.
    (first,) = read_first(source, ["image"])["image"].to_pylist()
    return digest_of({**facts, "first_image": hashlib.sha256(first or b"").hexdigest()})


def source_facts(source: Source) -> dict[str, Any]:
    """Return facts that identify a source without reading its images: a dataset's digest, or names, rows and sizes."""
    manifest = source.manifest or {}
    listed = [unit.facts for unit in source.units]
    return {
        "dataset": manifest.get("digest"),
        "num_images": source.num_rows,
        "images_sha256": None if "digest" in manifest else digest_of({"units": listed}),
    }


def image_facts(images: ImageCollection) -> dict[str, Any]:
    """Return facts that identify a collection, as `source_facts` does for one source; the order of sources counts."""
    each = [source_facts(source) for source in images.sources]
    if len(each) == 1:
        return each[0]
    return {"dataset": None, "num_images": images.num_rows, "images_sha256": digest_of({"sources": each})}
