"""Where checkpoints of a calibration's trainings lie, and which of them are removed when."""

import re
from collections.abc import Iterable

from pipeline import storage
from pipeline.config import digest as digest_of
from pipeline.errors import DatasetError, first_few, one_line
from pipeline.log import logger
from pipeline.outputs.names import QAT_CHECKPOINTS
from pipeline.quantization.variants import Variant

# Names of folders from `checkpoint_folder`. Earlier versions left out the digest of the run.
_NAME = re.compile(r"(?:w\d+a\d+|mixed)(?:-([0-9a-f]{8}))?(?:-[0-9a-f]{8})?")


def checkpoint_folder(output: str, variant: Variant, digest: str) -> str:
    """Return the folder of a variant's checkpoints.

    Args:
        output: folder of the calibration.
        variant: the variant that is trained. Other bit widths by layer, which the digest does not cover, have another
            folder.
        digest: digest of the run, so that a run with other settings has another folder too.
    """
    return storage.join(output, QAT_CHECKPOINTS, _name(variant, digest))


def _name(variant: Variant, digest: str) -> str:
    name = f"{variant.label}-{digest[:8]}"
    if variant.layers is not None:
        name += f"-{digest_of({layer: bits.label for layer, bits in variant.layers.items()})[:8]}"
    return name


def tell_others(output: str, digest: str) -> None:
    """Say that there are checkpoints of other settings than those of a digest: they stay until its run is done."""
    if others := _others(output, digest):
        logger.info(
            f"qat: checkpoints of other settings in {output!r} stay until this run is done, for a run with those "
            f"settings to go on from: {first_few(others)}"
        )


def _others(output: str, digest: str) -> list[str]:
    return [name for name in _list_folders(output) if _digest_in(name) != digest[:8]]


def remove_others(output: str, digest: str) -> None:
    """Remove checkpoints of other settings than those of a digest, and say so."""
    if others := _others(output, digest):
        logger.info(f"qat: removing checkpoints of other settings from {output!r}: {first_few(others)}")
        _remove(output, others)


def remove_checkpoints(output: str) -> None:
    """Remove all checkpoints of a calibration's trainings, or say that they are still there."""
    _remove(output, _list_folders(output))


def remove_variant(output: str, variant: Variant, digest: str) -> None:
    """Remove the checkpoints of one variant, or say that they are still there."""
    _remove(output, [_name(variant, digest)])


def _list_folders(output: str) -> list[str]:
    """Return the names of folders with checkpoints; a user's own files beside them are none."""
    try:
        names = storage.list_folders(storage.join(output, QAT_CHECKPOINTS))
    except DatasetError as error:
        logger.warning(f"qat: {one_line(error)}")
        return []
    return [name for name in names if _NAME.fullmatch(name)]


def _digest_in(name: str) -> str | None:
    match = _NAME.fullmatch(name)
    return None if match is None else match[1]


def _remove(output: str, names: Iterable[str]) -> None:
    folder = storage.join(output, QAT_CHECKPOINTS)
    try:
        for name in names:
            storage.remove_folder(storage.join(folder, name))
        # The folder itself, once nothing is in it.
        storage.remove_temporaries(folder)
    except OSError as error:
        logger.warning(f"checkpoints of qat could not be removed, delete them by hand: {one_line(error)}")
