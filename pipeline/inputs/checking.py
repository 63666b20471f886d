"""Check that images fit a model, without a cluster and before any work."""

from pipeline.dataset.collection import ImageCollection
from pipeline.dataset.conversion import Convert
from pipeline.dataset.discovery import find_source
from pipeline.dataset.rows import SEVERAL_DATASETS, read_columns, read_first, repeated_id
from pipeline.dataset.source import Source
from pipeline.errors import DatasetError
from pipeline.inputs.reading import COLUMNS, conversion
from pipeline.log import logger
from pipeline.models import LoadedModel


def check_inputs(
    images: ImageCollection,
    loaded: LoadedModel,
    *,
    labels: bool = False,
    reads_kept: bool | None = None,
    ids: bool = True,
) -> None:
    """Check, without a cluster, all that reading would fail on hours later, except images other than the first ones.

    If labels go by number, one line on standard error says so, with the classes that are taken to be the same.

    Args:
        images: images of one or several sources.
        loaded: the model that will read the images.
        labels: whether labels are needed.
        reads_kept: whether only the kept patches are read, see `read_inputs`.
        ids: whether to read all image ids to find repeated ones. A caller that reads them anyway checks them itself.

    Raises:
        DatasetError: as `read_inputs`; or two images of a source share an id, a label has no class, kept patches are
            none of the model's, or the first image of a source cannot be decoded.
    """
    for source in images.sources:
        _check_source(source, loaded, labels=labels, reads_kept=reads_kept)
        repeated = repeated_id(source) if ids else None
        if repeated is not None:
            raise DatasetError(
                f"{source.uri!r} has more than one image with the image_id {repeated!r}: {SEVERAL_DATASETS}"
            )


def _check_source(source: Source, loaded: LoadedModel, *, labels: bool, reads_kept: bool | None) -> None:
    convert = conversion(source, loaded, labels=labels, reads_kept=reads_kept)
    # Labels of a synthetic dataset fit its manifest, and those of class folders their names: nothing to check.
    if "label" in source.columns and source.manifest is None:
        for table in read_columns(source, "label"):
            convert.labels(table)
    if "keep_indices" in source.columns and source.manifest is None:
        for table in read_columns(source, "image_id", "keep_indices"):
            convert.keep_indices(table)
    convert(read_first(source, COLUMNS))
    _warn_of_labels(convert)


def _warn_of_labels(convert: Convert) -> None:
    if convert.labels_note is not None:
        logger.warning(convert.labels_note)


def check_planned(
    images: ImageCollection, loaded: LoadedModel, *, labels: bool = False, reads_kept: bool | None = None
) -> None:
    """Check images that are yet to be made, as far as `check_inputs` checks images without reading them.

    Raises:
        DatasetError: as `read_inputs`.
    """
    for source in images.sources:
        _warn_of_labels(conversion(source, loaded, labels=labels, reads_kept=reads_kept))


def other_teacher(source: Source, loaded: LoadedModel) -> str | None:
    """Say, as a sentence, that synthetic images were made from another model; None if they were not, or are real."""
    if source.manifest is None:
        return None
    name, weights = source.manifest["teacher"]["name"], source.manifest["teacher"]["weights_sha256"]
    if weights == loaded.digest:
        return None
    return (
        f"{source.uri!r} holds images of the teacher {name!r} with weights {weights[:8]}, "
        f"not of {loaded.name!r} with weights {loaded.digest[:8]}"
    )


def find_labeled(uri: str, loaded: LoadedModel, split: str | None = None, *, reads_kept: bool = False) -> Source:
    """Find labeled images at a URI, and check them without a cluster.

    Args:
        uri: location of the images, as `find_source` takes it.
        loaded: the model that will read the images.
        split: name of the split to read, where there are several.
        reads_kept: whether only the kept patches are read, as by a student that is trained on them.

    Raises:
        DatasetError: there are no labeled images, or as `check_inputs`.
    """
    source = find_source(uri, split=split)
    _check_source(source, loaded, labels=True, reads_kept=reads_kept)
    repeated = repeated_id(source)
    if repeated is not None:
        # An id may name a photograph from which several rows are cut, so each row is scored.
        logger.warning(f"{source.uri!r} has more than one image with the image_id {repeated!r}: each of them is scored")
    return source
