"""Find out what a URI holds: a synthetic dataset, Parquet files or an image folder.

Everything is checked before any work starts, so that a truncated or foreign file is reported at once, by name.
"""

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.dataset import schema, store
from pipeline.dataset.card import CARD, agreed_names, card_class_names, card_config, card_splits, class_order, read_card
from pipeline.dataset.decoding import IMAGE_SUFFIXES
from pipeline.dataset.folders import check_all_read, check_folders, class_folder, find_classes
from pipeline.dataset.footers import FileFacts, read_facts
from pipeline.dataset.generations import check_read_once, report_missing
from pipeline.dataset.incomplete_files import check_not_empty, check_pulled
from pipeline.dataset.index import IndexedPart, indexed_parts
from pipeline.dataset.listing import (
    Listing,
    by_suffix,
    check_utf8_names,
    counted,
    list_tree,
    report_same_images,
    report_skipped,
)
from pipeline.dataset.part_files import DATA, PartFile, list_part_files
from pipeline.dataset.source import Source
from pipeline.dataset.splits import (
    check_no_hidden_split_folders,
    check_no_hidden_splits,
    check_one_dataset,
    choose_split,
    folder_splits,
    parquet_splits,
)
from pipeline.dataset.tables import check_labels_in_files, check_no_log, how_to_read, is_unfinished
from pipeline.dataset.units import ImageFiles, RowRange, Unit
from pipeline.errors import DatasetError
from pipeline.log import logger

# Number of image files in a unit.
_IMAGES_PER_UNIT = 128


def find_source(uri: str, extra_columns: Sequence[str] = (), *, split: str | None = None) -> Source:
    """Find out what a URI holds, and check everything that can be checked without reading images.

    One line on standard error names the files that are skipped. `docs/images.md` has the rules.

    Args:
        uri: location of a synthetic dataset, of a Parquet file or a folder of them, or of a folder of images, with one
            subfolder per class or none.
        extra_columns: columns of Parquet files to read besides those of the contract.
        split: name of the split to read, where there are several, such as `test`.

    Raises:
        DatasetError: nothing is there, it holds no images, or files are truncated, foreign or of several kinds; or
            there are several splits and none is chosen, or there is no such split. The message names it.
    """
    if uri == "":
        raise DatasetError("the location of the images is empty: name a file or a folder, `.` for the working folder")
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise DatasetError(f"no dataset at {uri!r}: there is no such file or folder{storage.why_missing(uri)}")
    # A single file is tested for first. It has no manifest beside it, and asking for one may be forbidden, or return
    # the file itself, as a signed web address does.
    if storage.is_file(uri):
        return _one_file(uri, extra_columns, split)
    if storage.exists(store.manifest_uri(uri)):
        if split is not None:
            raise DatasetError(f"{uri!r} is a synthetic dataset, which has no splits: {split!r} cannot be read")
        return _synthetic(uri, extra_columns)
    listing = list_tree(uri)
    names = [name for name, _ in listing.files]
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    # In a folder of images Hugging Face datasets keeps facts about them in this file.
    facts = "metadata.parquet" if images else None
    parquet = [name for name in names if _is_parquet(name) and posixpath.basename(name) != facts]
    if parquet:
        check_no_log(uri, names, listing.hidden)
        parquet = [name for name in parquet if not is_unfinished(name)]
    if parquet:
        return _parquet_folder(uri, listing, parquet, extra_columns, split)
    if not images:
        holds = f"it holds {counted(names, 'file')}, {by_suffix(names)}{how_to_read(names)}" if names else "it is empty"
        raise DatasetError(f"no dataset at {uri!r}: neither Parquet files nor images are in it: {holds}")
    if extra_columns:
        raise DatasetError(f"{uri!r} is a folder of images: it has no column {extra_columns[0]!r}")
    return _image_folder(uri, listing, images, split)


def is_synthetic(uri: str) -> bool:
    """Return whether there is a manifest of a synthetic dataset at a URI."""
    uri = storage.absolute(uri)
    return not storage.is_file(uri) and storage.exists(store.manifest_uri(uri))


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _one_file(uri: str, extra_columns: Sequence[str], split: str | None) -> Source:
    if split is not None:
        raise DatasetError(f"{uri!r} is one file, which has no splits: {split!r} cannot be read")
    if uri.lower().endswith(IMAGE_SUFFIXES):
        raise DatasetError(f"{uri!r} is one image: give the URI of its folder")
    return _parquet(uri, [""], extra_columns)


def _synthetic(uri: str, extra_columns: Sequence[str]) -> Source:
    manifest = store.read_manifest(uri)
    digest = manifest["digest"]
    files = list_part_files(uri, digest)
    if not files:
        raise DatasetError(f"synthetic dataset {uri!r} has no parts yet")
    class_names = [str(name) for name in manifest["class_names"]]
    indexed = indexed_parts(uri, digest, {shard_id: file.size for file in files for shard_id in file.shard_ids})
    # One file is opened in any case, to see its columns.
    opened = [file for file in files if not indexed.keys() >= set(file.shard_ids)] or files[:1]
    source = _parquet(uri, [_name(file) for file in opened], extra_columns, class_names)
    absent = sorted(set(schema.COLUMNS) - set(source.columns))
    if absent:
        wanted = schema.COLUMNS[absent[0]]
        raise DatasetError(f"synthetic dataset {uri!r}: its parts have no column {absent[0]!r} of type {wanted}")
    read: dict[str, list[Unit]] = {_name(file): [] for file in opened}
    for unit in source.units:
        if isinstance(unit, RowRange):
            read[unit.name].append(unit)
    units = [
        unit
        for file in files
        for unit in (read[_name(file)] if _name(file) in read else _indexed_units(uri, file, indexed))
    ]
    return Source(uri, source.columns, class_names, True, units, manifest)


def _name(file: PartFile) -> str:
    """Return the name of a file of parts below the dataset's URI."""
    return f"{DATA}/{file.name}"


def _indexed_units(uri: str, file: PartFile, indexed: Mapping[int, IndexedPart]) -> Iterator[RowRange]:
    """Yield the rows of each part in a file that was not opened; each part is written as one row group."""
    name, first_row = _name(file), 0
    for row_group, shard_id in enumerate(file.shard_ids):
        part = indexed[shard_id]
        yield RowRange(storage.join(uri, name), name, row_group, first_row, 0, part.num_rows, part.row_group_bytes)
        first_row += part.num_rows


def _parquet_folder(
    uri: str, listing: Listing, names: list[str], extra_columns: Sequence[str], split: str | None
) -> Source:
    card = _card(uri, listing)
    config = card_config(uri, card)
    listed = None if config is None else card_splits(uri, config, names)
    splits = listed or parquet_splits(names)
    chosen, files = choose_split(uri, splits, split)
    if listed is None:
        check_one_dataset(uri, chosen, files)
        if chosen is None:
            check_no_hidden_splits(uri, files)
    check_utf8_names(uri, files)
    check_read_once(uri, listing, files)
    check_pulled(uri, dict(listing.files), files)
    report_missing(uri, files)
    unread = {name for found in splits.files.values() for name in found} - set(files)
    report_skipped(uri, listing, "Parquet files", read=[*files, *([CARD] if card else [])], unread=unread)
    in_card = card_class_names(card, config)
    source = _parquet(uri, files, extra_columns, in_card)
    if "label" not in source.columns:
        check_labels_in_files(uri, files)
    return replace(source, class_names=agreed_names(uri, source.class_names, in_card))


def _card(uri: str, listing: Listing) -> dict[str, Any]:
    return read_card(uri) if any(name == CARD for name, _ in listing.files) else {}


def _parquet(uri: str, names: list[str], extra_columns: Sequence[str], known: Sequence[str] | None = None) -> Source:
    """Return the source that Parquet files are.

    Args:
        uri: location of the file, or of the folder of the files.
        names: names of the files in the folder.
        extra_columns: columns to read besides those of the contract.
        known: class names from elsewhere, for files that hold none; None if none are known.
    """
    files = read_facts([_file_uri(uri, name) for name in names], extra_columns)
    first: FileFacts | None = None
    held: tuple[str, ...] | None = None
    units: list[Unit] = []
    for name, facts in zip(names, files, strict=True):
        if not any(num_rows for num_rows, _ in facts.row_groups):
            continue
        first = first or facts
        if facts.columns != first.columns:
            raise DatasetError(f"{facts.uri!r} has other columns than {first.uri!r}")
        if facts.names_digest != first.names_digest:
            raise DatasetError(f"{facts.uri!r} has other class names than {first.uri!r}")
        held = held or facts.class_names
        units.extend(_row_groups(facts, name))
    if first is None:
        raise DatasetError(f"{uri!r} has no rows")
    class_names = known if held is None else held
    if class_names is None and first.names_digest is not None:
        class_names = _names_beside(uri, first)
    named = None if class_names is None else list(class_names)
    synthetic, likely_labels = "keep_indices" in first.columns, first.likely_labels
    if likely_labels is not None and likely_labels.startswith("'label' "):
        logger.warning(f"{uri!r}: its column {likely_labels} holds no numbers, and is not read")
    if first.unread_ids is not None:
        logger.warning(
            f"{uri!r}: its column {first.unread_ids} holds neither texts nor whole numbers, and is not read: ids of "
            "images come from file and row"
        )
    return Source(uri, first.columns, named, synthetic, units, likely_labels=likely_labels)


def _names_beside(uri: str, part: FileFacts) -> list[str] | None:
    """Return the class names of parts without them, from the manifest beside `data/`; None if there is none."""
    output = posixpath.dirname(posixpath.dirname(part.uri))
    names = store.read_manifest(output)["class_names"] if _has_manifest(output) else []
    if schema.names_digest(names) == part.names_digest:
        return names
    missing = "but not the manifest.json with their class names: labels go by number"
    logger.warning(f"{uri!r} holds parts of a synthetic dataset, {missing}")
    return None


def _has_manifest(output: str) -> bool:
    """Return whether there is a manifest; "no" if it is forbidden to ask, as beside a file with a signed address."""
    try:
        return storage.exists(store.manifest_uri(output))
    except DatasetError as error:
        if error.is_transient:
            raise
        return False


def _file_uri(uri: str, name: str) -> str:
    return storage.join(uri, name) if name else uri


def _row_groups(facts: FileFacts, name: str) -> Iterator[RowRange]:
    first_row = 0
    for index, (num_rows, size) in enumerate(facts.row_groups):
        if num_rows:
            yield RowRange(facts.uri, name, index, first_row, 0, num_rows, size)
        first_row += num_rows


def _image_folder(uri: str, listing: Listing, images: list[str], split: str | None) -> Source:
    splits = folder_splits(images)
    chosen, read = choose_split(uri, splits, split)
    if chosen is None:
        check_no_hidden_split_folders(uri, read)
    root = chosen or ""
    sizes = dict(listing.files)
    check_folders(uri, root, read)
    check_all_read(uri, root, read, sizes)
    report_same_images(uri, listing, read)
    check_not_empty(uri, sizes, read)
    check_pulled(uri, sizes, read)
    card = _card(uri, listing)
    names = class_order(uri, card, find_classes(uri, root, splits.files or [""], images, listing.empty_folders))
    check_utf8_names(uri, [*read, *names])
    report_skipped(uri, listing, "images", read=[*read, *([CARD] if card else [])], unread=set(images))
    labels = {name: label for label, name in enumerate(names)}
    units = [
        ImageFiles(
            tuple((storage.join(uri, name), name, labels.get(class_folder(root, name))) for name in chunk),
            sum(sizes[name] for name in chunk),
        )
        for chunk in _chunks(read, _IMAGES_PER_UNIT)
    ]
    columns = {"image": pa.binary(), "image_id": pa.string(), **({"label": pa.int64()} if names else {})}
    return Source(uri, columns, names or None, False, list(units))


def _chunks(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
