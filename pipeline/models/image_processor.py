"""Read the preprocessing of a transformers folder, in timm's terms."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from PIL import Image

from pipeline.checks import describe_normalization_fault, is_number
from pipeline.documents import parse_json
from pipeline.models.preprocessing import Interpolation
from pipeline.storage import exists, join, read_bytes

# transformers writes Pillow's numbers, timm takes its names.
_INTERPOLATIONS = {int(Image.Resampling[name.upper()]): name for name in get_args(Interpolation)}
_FILE = "preprocessor_config.json"
# Newer versions write one file for a model that also reads texts; its entry counts before a file of its own.
_FILE_OF_ALL, _ENTRY = "processor_config.json", "image_processor"


@dataclass(frozen=True)
class _Assumed:
    """Defaults of a class of processors, for what its file leaves out.

    Attributes:
        resample: Pillow's number of an interpolation.
        crops: whether the center of the resized image is cropped.
        squashes: whether a size that is one number is that of both edges, not of the shorter one.
    """

    resample: int
    crops: bool
    squashes: bool


_OF_CLIP = _Assumed(Image.Resampling.BICUBIC, crops=True, squashes=False)
_ASSUMED = {
    "ViT": _Assumed(Image.Resampling.BILINEAR, crops=False, squashes=True),
    "DeiT": _Assumed(Image.Resampling.BICUBIC, crops=True, squashes=True),
    "Siglip": _Assumed(Image.Resampling.BICUBIC, crops=False, squashes=False),
    "Bit": _OF_CLIP,
    "CLIP": _OF_CLIP,
}


def read_processor(folder: str, usual: str) -> tuple[dict[str, Any], int] | None:
    """Return the preprocessing that a folder's file states: `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`.

    The second value is the edge, in pixels, of the squares that it makes. None if there is no such file.

    Args:
        folder: location of the model's folder.
        usual: class of the processor that goes with the model, such as `ViT`, where the file does not name one.

    Raises:
        DatasetError: the file exists and cannot be read.
        ValueError: it is no JSON object, or describes what timm does not do; the message begins with its name.
    """
    name, stated = f"{_FILE_OF_ALL}'s {_ENTRY}", (_read(folder, _FILE_OF_ALL) or {}).get(_ENTRY)
    if not isinstance(stated, Mapping):
        name, stated = _FILE, _read(folder, _FILE)
    if stated is None:
        return None
    try:
        normalization, (resizing, edge) = _normalization(stated), _resizing(stated, _complete(stated, usual))
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    return {**normalization, **resizing}, edge


def _read(folder: str, name: str) -> Mapping[str, Any] | None:
    """Return the JSON object in a file of a folder; None if there is no file."""
    uri = join(folder, name)
    if not exists(uri):
        return None
    try:
        stated = parse_json(read_bytes(uri))
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(stated, Mapping):
        raise ValueError(f"{name} is no JSON object")
    return stated


def _normalization(stated: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    if not stated.get("do_rescale", True):
        raise ValueError("does not scale pixels to [0, 1] (do_rescale)")
    factor = stated.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-3:
        raise ValueError(f"does not scale pixels to [0, 1]: rescale_factor {factor!r:.40}")
    if not stated.get("do_normalize", True):
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    found = {ours: _per_channel(stated.get(theirs)) for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))}
    if not all(isinstance(values, list) for values in found.values()):
        raise ValueError("states no image_mean and image_std")
    if fault := describe_normalization_fault(found):
        raise ValueError(f"is wrong: {fault}")
    return {name: tuple(map(float, values or ())) for name, values in found.items()}


def _per_channel(values: Any) -> Any:
    """Return a list of one number per color; transformers also takes one number for all of them."""
    return [values] * 3 if is_number(values) else values


def _complete(stated: Mapping[str, Any], usual: str) -> _Assumed:
    """Return what the class of a processor assumes, where its file leaves it out.

    Raises:
        ValueError: the file leaves something out, and its class is not known.
    """
    named = stated.get("image_processor_type", stated.get("feature_extractor_type", usual))
    # The endings of older versions, and of several implementations of the same.
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)?(Fast|Pil)?$", "", str(named))
    if (assumed := _ASSUMED.get(kind)) is not None:
        return assumed
    for key in ("resample", "do_center_crop"):
        if key not in stated:
            raise ValueError(f"states no {key}, and what {named!r:.60} then assumes is not known")
    if isinstance(stated.get("size"), int):
        raise ValueError(f"states the size {stated['size']!r:.40}, and which edge {named!r:.60} means is not known")
    return _OF_CLIP


def _resizing(stated: Mapping[str, Any], assumed: _Assumed) -> tuple[dict[str, Any], int]:
    """Return how images become squares, and their edge: timm resizes to the model's edge / `crop_pct`, then crops."""
    if not stated.get("do_resize", True):
        raise ValueError("does not resize images (do_resize)")
    if stated.get("do_pad", False):
        raise ValueError("pads images (do_pad)")
    size = stated.get("size")
    crops = bool(stated.get("do_center_crop", assumed.crops))
    given = {key for key, value in size.items() if value is not None} if isinstance(size, Mapping) else set()
    if "longest_edge" in given:
        raise ValueError(f"resizes the longer edge, so that images are no squares: {size!r:.60}")
    shorter = "shortest_edge" in given or (isinstance(size, int) and not assumed.squashes)
    resized = _edge(size, "size")
    edge = _edge(stated.get("crop_size"), "crop_size") if crops else resized
    resample = stated.get("resample", assumed.resample)
    if not isinstance(resample, int) or resample not in _INTERPOLATIONS:
        raise ValueError(f"states the unknown resample {resample!r:.40}")
    if shorter and not crops:
        raise ValueError("resizes the shorter edge and does not crop, so that images are no squares")
    crop_mode = "center" if shorter else "squash"
    share = _share(edge, resized)
    return {"interpolation": _INTERPOLATIONS[resample], "crop_pct": share, "crop_mode": crop_mode}, edge


def _share(edge: int, resized: int) -> float:
    """Return the share by which timm divides an edge and rounds down, so that `resized` comes out."""
    share = edge / resized
    return share if int(edge / share) == resized else math.nextafter(share, 0)


def _edge(size: Any, name: str) -> int:
    """Return the edge of a square, as transformers writes it: a number, or one or two numbers, perhaps with names."""
    values = size.values() if isinstance(size, Mapping) else size if isinstance(size, list) else [size]
    edges = [value for value in values if value is not None]
    if not edges or not all(isinstance(edge, int) and edge > 0 and edge == edges[0] for edge in edges):
        raise ValueError(f"states a {name} that is no square: {size!r:.60}")
    return edges[0]
