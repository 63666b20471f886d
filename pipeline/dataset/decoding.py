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

from pipeline.file_kinds import recognize_foreign

# Pillow's name of a format → suffixes of its files. Left out of Pillow's formats are those for which it starts other
# programs (EPS), and those without a signature, which any bytes may pass for (TGA).
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
# Errors that Pillow raises for files that it cannot read to the end.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, EOFError, struct.error),
    Image.DecompressionBombError,
)
# EXIF orientation → the operation that turns the stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Values of 12 bits or fewer in a 16-bit file would become almost black.
_LEAST_16_BIT_MAXIMUM = 4096
# Pillow reads only the high bytes of 16-bit colors, with an unpacker of such a name, which ends in the byte order.
# BMP's BGR;16 is left out: it has 5 or 6 bits per color.
_HIGH_BYTES = re.compile(r"(?:RGB|RGBA|RGBa|RGBX|LA|CMYK);16([LBN])")
_GRAY_ALPHA = "LA;16B"
# Byte order → the opposite one; N is that of this machine.
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
# Byte that follows 0xFF where a scan of a JPEG begins.
_SCAN = 0xDA
# TIFF tags and their values.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_SAMPLE_FORMAT, _SIGNED = 339, 2
_PLANAR_CONFIGURATION, _SEPARATE = 284, 2
_BITS_PER_SAMPLE = 258
# Allows for rounding in the program that scaled the values.
_TOLERANCE = 1e-6


class UnreadableImageError(Exception):
    """An image file is damaged, or its values cannot be interpreted; the message says which."""


def decode(encoded: bytes) -> Image.Image:
    """Decode an image file to a picture of mode L or RGB.

    The first rule that fits applies:

    - 8-bit gray and RGB: as they are. Color profiles and gamma are ignored.
    - 1 bit: black is 0, white 255.
    - 16 bits: the high byte; refused if no value needs more than 12 bits, unless all are 0. A PPM file states its
      largest value: it is refused if no value reaches a sixteenth of that.
    - Floating point: times 255 if all values are in [0, 1]; refused otherwise.
    - 32-bit and signed integers: refused. So are color planes of more than 8 bits, which Pillow misreads.
    - Gray with alpha: gray. Palettes, alpha, CMYK, YCbCr and Lab: RGB as Pillow converts it. Alpha is dropped, not
      blended with a background.
    - Several frames or pages: refused.
    - EXIF orientation: applied, as in Hugging Face datasets, and unlike in torchvision and timm. An orientation that
      cannot be read is ignored.

    Raises:
        UnreadableImageError: the file cannot be read, or a rule refuses it.
    """
    try:
        image = _open(encoded)
        of_16_bits = any(_low_bits_of(tile) is not None for tile in image.tile)
        gray_alpha = _is_gray_alpha(image)
        # The second frame of a JPEG is a preview or a gain map.
        if image.format not in ("JPEG", "MPO") and getattr(image, "n_frames", 1) > 1:
            raise UnreadableImageError(
                f"it holds {image.n_frames} frames or pages, and one is read: save the one that is meant by itself"
            )
        _check_tags(getattr(image, "tag_v2", {}))
        image.load()
        if image.format in ("JPEG", "MPO") and not _has_end(encoded):
            raise UnreadableImageError(
                "it is a JPEG without an end marker: cut off, or padded (save it anew if the picture is whole)"
            )
        if of_16_bits:
            _check_not_dark(image, encoded)
        turn = _UPRIGHT.get(_orientation(image))
        # Pillow repeats the gray value as red, green and blue.
        picture = image.getchannel(0) if gray_alpha else _to_8_bit(image)
    except UnidentifiedImageError as error:
        foreign = recognize_foreign(encoded, "an image")
        # Pillow's own message names an object in memory.
        unknown = (
            f"Pillow reads it as none of {', '.join(FORMATS)}: damaged, another format, or an unusual kind of pixels"
        )
        raise UnreadableImageError(unknown if foreign is None else f"it {foreign}") from error
    except _UNREADABLE as error:
        raise UnreadableImageError(str(error)) from error
    return picture if turn is None else picture.transpose(turn)


def _open(encoded: bytes) -> Any:
    return Image.open(io.BytesIO(encoded), formats=tuple(FORMATS))


def _has_end(jpeg: bytes) -> bool:
    """Return whether a JPEG ends after its first scan has begun; a preview in its head has an end of its own.

    Pillow notices that a file stops there, and not that its rest is zeros, as a download leaves it that was cut off.
    """
    place = 2
    while jpeg[place : place + 1] == b"\xff":
        marker = jpeg[place + 1]
        if marker == _SCAN:
            # In the data of a scan 0xFF is never followed by such a byte.
            return jpeg.find(b"\xff\xd9", place) >= 0
        place += 1 if marker == 0xFF else 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return True  # of an unusual structure, which Pillow read


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _UNREADABLE:
        return None


def _check_tags(tags: Mapping[int, Any]) -> None:
    """Refuse TIFF files whose values Pillow misreads."""
    bits = tags.get(_BITS_PER_SAMPLE) or (1,)
    # Integers of 32 bits, signed or not, are refused elsewhere, with their range.
    if _SIGNED in _values(tags.get(_SAMPLE_FORMAT)) and max(_values(bits)) < 32:
        raise UnreadableImageError("it stores signed integers, of no known range: save it in 8 or 16 bits without sign")
    if tags.get(_PLANAR_CONFIGURATION) == _SEPARATE and len(_values(bits)) > 1 and max(_values(bits)) > 8:
        raise UnreadableImageError("it stores each color in a plane of more than 8 bits: save it without planes")


def _values(tag: Any) -> tuple[int, ...]:
    return tag if isinstance(tag, tuple) else () if tag is None else (tag,)


def _check_not_dark(image: Image.Image, encoded: bytes) -> None:
    """Refuse 16-bit colors that need 12 bits or fewer, unless all are 0; Pillow has kept only their high bytes."""
    high = _colors(image).max()
    if high >= _LEAST_16_BIT_MAXIMUM >> 8:
        return
    if high or _low_bits(encoded).any():
        raise UnreadableImageError(_too_dark("its largest value"))


def _is_gray_alpha(image: Any) -> bool:
    """Return whether an image that is not loaded yet is gray with alpha, of 16 bits each."""
    return any(_GRAY_ALPHA in _arguments(tile) for tile in image.tile)


def _low_bits(encoded: bytes) -> np.ndarray:
    """Return the low bytes of 16-bit colors, which Pillow leaves out, without alpha."""
    image = _open(encoded)
    gray_alpha = _is_gray_alpha(image)
    image.tile = [_low_bits_of(tile) or tile for tile in image.tile]
    # Gray with alpha is read as four bytes; the second is the low byte of gray.
    return np.asarray(image)[..., 1] if gray_alpha else _colors(image)


def _colors(image: Image.Image) -> np.ndarray:
    """Return the stored values of an image, without alpha."""
    values = np.asarray(image)
    return values[..., :-1] if image.mode == "RGBA" else values


def _low_bits_of(tile: Any) -> Any:
    """Return a tile that reads the bytes that Pillow drops of 16-bit colors; None if it drops nothing.

    A tile is Pillow's record of where an image's pixels lie in a file: the decoder that reads them, and its arguments,
    of which the first or only one is the name of the unpacker.
    """
    name, *rest = _arguments(tile)
    if tile.codec_name in ("ppm", "ppm_plain"):
        # With 256 as the maximum that Pillow scales to 8 bits, no value except 0 becomes 0.
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
        # Pillow inverts such files only if they have 8 bits.
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise UnreadableImageError("it stores white as 0 in more than 8 bits: save it in 8 bits")
        return _from_float(image) if image.mode == "F" else _from_integers(image)
    # Alpha is dropped in any case, and Pillow would warn of one in a palette.
    image.info.pop("transparency", None)
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _from_float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UnreadableImageError("its floating-point values are not all finite")
    low, high = float(values.min()), float(values.max())
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise UnreadableImageError(
            f"its floating-point values range from {low:g} to {high:g}, and must lie in 0 to 1: "
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
        f"it has 16 bits, and {largest} needs 12 or fewer, so it would be almost black: scale it to all 16 bits, "
        "or save it in 8 bits"
    )
