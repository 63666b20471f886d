"""Ranges of another calibration, to compare with."""

from collections.abc import Iterable
from typing import Any

from pipeline import storage
from pipeline.errors import DatasetError, first_few
from pipeline.outputs.names import CONFIG, RANGES
from pipeline.outputs.owners import job_of
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.ranges import Ranges, tell_constant


def read_reference(uri: str, teacher_digest: str, placement: Placement) -> Ranges:
    """Return the ranges of another calibration of the same teacher at the same places.

    A line says which of its activations are constant, and cannot be compared with.

    Args:
        uri: output of the other calibration.
        teacher_digest: SHA-256 of the teacher's weights.
        placement: placement of this calibration.

    Raises:
        DatasetError: the output is no calibration, or an unfinished one, or one of another teacher or placement, or of
            a smoothed or equalized model; or all of its activations are constant.
    """
    if job_of(uri) != "calibrate":
        raise DatasetError(f"reference {uri!r} is not the output of a calibration")
    config = storage.read_json(storage.join(uri, CONFIG))
    # Earlier versions wrote the facts at the top.
    facts: dict[str, Any] = config.get("identity") or config
    for name, mine in (("teacher", teacher_digest), ("placement", placement)):
        if facts.get(name) != mine:
            raise DatasetError(f"reference {uri!r} has the {name} {facts.get(name)!r}, this calibration {mine!r}")
    # Facts leave out settings at their defaults, so each of these that is named here has changed the model.
    if changed := [name for name in ("smoothing", "equalization") if name in facts]:
        raise DatasetError(f"reference {uri!r} has ranges of a model that its {changed[0]} has changed")
    ranges = storage.read_json(storage.join(uri, RANGES))
    found = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
    tell_constant(uri, found)
    return found


def check_points(uri: str, reference: Ranges, points: Iterable[str]) -> None:
    """Check that a reference was observed at the points of this calibration, before the pass over its images.

    Raises:
        DatasetError: the points differ, because an earlier version observed others in this model.
    """
    points = set(points)
    if reference.keys() == points:
        return
    without, only = sorted(points - reference.keys()), sorted(reference.keys() - points)
    found = [f"{first_few(names)} only {where}" for names, where in ((only, "there"), (without, "here")) if names]
    raise DatasetError(
        f"reference {uri!r} observed this model at other points ({'; '.join(found)}), as earlier versions did: make "
        f"the reference again, with the settings under `config` in {storage.join(uri, CONFIG)!r}"
    )
