"""Decode image files to upright 8-bit gray or RGB pixels.

`docs/images.md` states the same rules for users.
"""

import io
import re
import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.foreign import recognize_foreign

# Format, as Pillow calls it → suffixes of its files. Pillow knows more formats; of some it starts other programs to
# read them (EPS), and some have no signature, so that any bytes may pass for them (TGA).
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# What Pillow raises for files that it cannot read to their end.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, EOFError, struct.error),
    Image.DecompressionBombError,
)
# EXIF orientation → what turns the stored pixels the right way up.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Values of 12 bits or fewer in a 16-bit file would come out almost black.
_LEAST_16_BIT_MAXIMUM = 4096
# Of colors in 16 bits Pillow reads the high bytes alone, by an unpacker of such a name, the byte order last. What BMP
# calls BGR;16 has 5 or 6 bits per color.
_HIGH_BYTES = re.compile(r"(?:RGB|RGBA|RGBa|RGBX|LA|CMYK);16([LBN])")
_GRAY_ALPHA = "LA;16B"
# Byte order → the other one; N is that of this machine.
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
# Tags of TIFF and their values.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_SAMPLE_FORMAT, _SIGNED = 339, 2
_PLANAR_CONFIGURATION, _SEPARATE = 284, 2
_BITS_PER_SAMPLE = 258
# Rounding in the program that scaled the values.
_TOLERANCE = 1e-6


class UnreadableImageError(Exception):
    """An image file is damaged, or nothing states how its values are to be read; the message says which."""


def decode(encoded: bytes) -> Image.Image:
    """Return the picture in an image file, of mode L or RGB.

    The first rule that fits holds:

    - 8-bit gray and RGB: as they are. Color profiles and gamma are ignored.
    - 1 bit: black is 0, white 255.
    - 16 bits: the high byte; refused where no value needs more than 12 bits, unless all are 0. In PPM, where the file
      states its largest value: refused where none reaches a sixteenth of it.
    - Floating point: times 255, where all values are in [0, 1]; refused otherwise.
    - 32-bit and signed integers: refused. So are color planes of more than 8 bits, which Pillow misreads.
    - Gray with alpha: gray. Palettes, alpha, CMYK, YCbCr and Lab: RGB as Pillow converts it. Alpha is dropped,
      nothing is blended with a background.
    - Several frames or pages: refused.
    - EXIF orientation: applied, as Hugging Face datasets does and torchvision and timm do not. Orientation that cannot
      be read is none.

    Raises:
        UnreadableImageError: it cannot be read, or a rule refuses it.
    """
    try:
        image = _open(encoded)
        of_16_bits = any(_low_bits_of(tile) is not None for tile in image.tile)
        # The second frame of a JPEG is a preview or a gain map.
        if image.format not in ("JPEG", "MPO") and getattr(image, "n_frames", 1) > 1:
            raise UnreadableImageError(
                f"it holds {image.n_frames} frames or pages, and one is read: save the one that is meant as a file"
            )
        _check_tags(getattr(image, "tag_v2", {}))
        image.load()
        if of_16_bits:
            _check_not_dark(image, encoded)
        turn = _UPRIGHT.get(_orientation(image))
        picture = _to_8_bit(image)
    except UnidentifiedImageError as error:
        foreign = recognize_foreign(encoded, "an image")
        # Pillow's own words for it name an object in memory.
        unknown = (
            f"Pillow reads it as none of {', '.join(FORMATS)}: damaged, another format, or an unusual kind of pixels"
        )
        raise UnreadableImageError(unknown if foreign is None else f"it {foreign}") from error
    except _UNREADABLE as error:
        raise UnreadableImageError(str(error)) from error
    return picture if turn is None else picture.transpose(turn)


def _open(encoded: bytes) -> Any:
    return Image.open(io.BytesIO(encoded), formats=tuple(FORMATS))


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _UNREADABLE:
        return None


def _check_tags(tags: Mapping[int, Any]) -> None:
    """Refuse TIFF files whose values Pillow takes for others."""
    bits = tags.get(_BITS_PER_SAMPLE) or (1,)
    # Of 32 bits signed and unsigned are refused alike, with their range.
    if _SIGNED in _values(tags.get(_SAMPLE_FORMAT)) and max(_values(bits)) < 32:
        raise UnreadableImageError("it stores signed integers, of no known range: save it in 8 or 16 bits without sign")
    if tags.get(_PLANAR_CONFIGURATION) == _SEPARATE and len(_values(bits)) > 1 and max(_values(bits)) > 8:
        raise UnreadableImageError("it stores each color in a plane of more than 8 bits: save it without planes")


def _values(tag: Any) -> tuple[int, ...]:
    return tag if isinstance(tag, tuple) else () if tag is None else (tag,)


def _check_not_dark(image: Image.Image, encoded: bytes) -> None:
    """Refuse colors in 16 bits that need 12 or fewer, of which Pillow has kept the high bytes; not what is all 0."""
    high = _colors(image).max()
    if high >= _LEAST_16_BIT_MAXIMUM >> 8:
        return
    if high or _low_bits(encoded).any():
        raise UnreadableImageError(_too_dark("its largest value"))


def _low_bits(encoded: bytes) -> np.ndarray:
    """Return of colors in 16 bits what Pillow leaves out of them, without alpha."""
    image = _open(encoded)
    gray_alpha = any(_GRAY_ALPHA in _arguments(tile) for tile in image.tile)
    image.tile = [_low_bits_of(tile) or tile for tile in image.tile]
    # Of gray with alpha, read as four bytes, the second.
    return np.asarray(image)[..., 1] if gray_alpha else _colors(image)


def _colors(image: Image.Image) -> np.ndarray:
    """Return the values of an image as it is stored, without alpha."""
    values = np.asarray(image)
    return values[..., :-1] if image.mode == "RGBA" else values


def _low_bits_of(tile: Any) -> Any:
    """Return how Pillow would read what it drops of a tile with 16 bits per color; None where it drops nothing.

    A tile is what Pillow has found of an image's pixels in a file: which decoder reads them, and its arguments, of
    which the name of the unpacker is the first or only one.
    """
    name, *rest = _arguments(tile)
    if tile.codec_name in ("ppm", "ppm_plain"):
        # Scaled to 8 bits by 256 instead of its own maximum, no value but 0 becomes 0.
        return tile._replace(args=(name, 256)) if name == "RGB" and rest[0] > 255 else None
    match = _HIGH_BYTES.fullmatch(str(name))
    if match is None:
        return None
    # Pillow has no unpacker for the low bytes of gray with alpha.
    low = "RGBA" if name == _GRAY_ALPHA else str(name)[:-1] + _OTHER_ORDER[match[1]]
    return tile._replace(args=(low, *rest) if isinstance(tile.args, tuple) else low)


def _arguments(tile: Any) -> tuple[Any, ...]:
    return (tile.args or (None,)) if isinstance(tile.args, tuple) else (tile.args,)


def _to_8_bit(image: Any) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow inverts such files where they have 8 bits, and only then.
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise UnreadableImageError("it stores white as 0 in more than 8 bits: save it in 8 bits")
        return _from_float(image) if image.mode == "F" else _from_integers(image)
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _from_float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UnreadableImageError("its floating-point values are not all finite")
    low, high = float(values.min()), float(values.max())
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise UnreadableImageError(
            f"its floating-point values are from {low:g} to {high:g}, and only those from 0 to 1 are read: "
            "rescale them, or save it in 8 bits"
        )
    return Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8))


def _from_integers(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    # Pillow reads 16-bit PGM files as mode I, scaled to 16 bits.
    if image.mode == "I" and image.format != "PPM":
        raise UnreadableImageError(
            f"its values are 32-bit integers from {low} to {high}, of no known range: save it in 8 or 16 bits"
        )
    if 0 < high < _LEAST_16_BIT_MAXIMUM:
        raise UnreadableImageError(_too_dark(f"its largest value, {high},"))
    return Image.fromarray((values >> 8).astype(np.uint8))


def _too_dark(largest: str) -> str:
    return (
        f"it has 16 bits, of which {largest} needs 12 or fewer, so it would be almost black: scale it to all 16 bits, "
        "or save it in 8 bits"
    )
