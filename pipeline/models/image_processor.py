"""Read the preprocessing of a transformers folder, in timm's terms."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from PIL import Image

from pipeline.checks import describe_normalization_fault
from pipeline.documents import parse_json
from pipeline.models.preprocessing import Interpolation
from pipeline.storage import exists, join, read_bytes

# transformers writes Pillow's numbers, timm takes its names.
_INTERPOLATIONS = {int(Image.Resampling[name.upper()]): name for name in get_args(Interpolation)}
_FILE = "preprocessor_config.json"


def read_processor(folder: str) -> tuple[dict[str, Any], int] | None:
    """Return the preprocessing that a folder's file states: `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`.

    And the edge, in pixels, of the squares that it makes. None if there is no such file.

    Raises:
        DatasetError: the file exists and cannot be read.
        ValueError: it is no JSON object, or describes what timm does not do; the message begins with its name.
    """
    uri = join(folder, _FILE)
    if not exists(uri):
        return None
    try:
        stated = parse_json(read_bytes(uri))
    except ValueError as error:
        raise ValueError(f"{_FILE} is no JSON: {error}") from error
    if not isinstance(stated, Mapping):
        raise ValueError(f"{_FILE} is no JSON object")
    normalization, (resizing, edge) = _normalization(stated), _resizing(stated)
    return {**normalization, **resizing}, edge


def _normalization(stated: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    factor = stated.get("rescale_factor", 1 / 255)
    if not stated.get("do_rescale", True) or not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-3:
        raise ValueError(f"{_FILE} does not scale pixels to [0, 1]: rescale_factor {factor!r:.40}")
    if not stated.get("do_normalize", True):
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    found = {ours: stated.get(theirs) for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))}
    if not all(isinstance(values, list) for values in found.values()):
        raise ValueError(f"{_FILE} states no image_mean and image_std")
    if fault := describe_normalization_fault(found):
        raise ValueError(f"{_FILE}: {fault}")
    return {name: tuple(map(float, values or ())) for name, values in found.items()}


def _resizing(stated: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return how images become squares, and their edge: timm resizes to the model's edge / `crop_pct`, then crops."""
    if not stated.get("do_resize", True):
        raise ValueError(f"{_FILE} does not resize images (do_resize)")
    size = stated.get("size")
    crops = bool(stated.get("do_center_crop", False))
    given = {key for key, value in size.items() if value is not None} if isinstance(size, Mapping) else set()
    if "longest_edge" in given:
        raise ValueError(f"{_FILE} resizes the longer edge, so that images are no squares: {size!r:.60}")
    crop_mode = "center" if "shortest_edge" in given else "squash"
    resized = _edge(size, "size")
    edge = _edge(stated.get("crop_size"), "crop_size") if crops else resized
    resample = stated.get("resample", 2)
    if not isinstance(resample, int) or resample not in _INTERPOLATIONS:
        raise ValueError(f"{_FILE} states the unknown resample {resample!r:.40}")
    if crop_mode == "center" and not crops:
        raise ValueError(f"{_FILE} resizes the shorter edge and does not crop, so that images are no squares")
    share = _share(edge, resized)
    return {"interpolation": _INTERPOLATIONS[resample], "crop_pct": share, "crop_mode": crop_mode}, edge


def _share(edge: int, resized: int) -> float:
    """Return the share by which timm divides an edge and rounds down, so that `resized` comes out."""
    share = edge / resized
    return share if int(edge / share) == resized else math.nextafter(share, 0)


def _edge(size: Any, name: str) -> int:
    """Return the edge of a square, as transformers writes it: a number, or one or two numbers with names."""
    edges = {value for key, value in size.items() if value is not None} if isinstance(size, Mapping) else {size}
    edge = next(iter(edges), None)
    if len(edges) != 1 or not isinstance(edge, int) or edge < 1:
        raise ValueError(f"{_FILE} states a {name} that is no square: {size!r:.60}")
    return edge
