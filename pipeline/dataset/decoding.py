"""From the bytes of an image file to 8-bit gray or RGB pixels, the right way up, by stated rules.

`docs/images.md` states the same rules for users.
"""

import io
import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

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
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
# Rounding in the program that scaled the values.
_TOLERANCE = 1e-6


class UnreadableImageError(Exception):
    """An image file is damaged, or nothing states how its values are to be read; the message says which."""


def decode(encoded: bytes) -> Image.Image:
    """Return the picture in an image file, of mode L or RGB.

    The first rule that fits holds:

    - 8-bit gray and RGB: as they are. Color profiles and gamma are ignored.
    - 1 bit: black is 0, white 255.
    - 16 bits: the high byte; refused where no value needs more than 12 bits.
    - Floating point: times 255, where all values are in [0, 1]; refused otherwise.
    - 32-bit integers: refused.
    - Gray with alpha: gray. Palettes, alpha, CMYK, YCbCr and Lab: RGB as Pillow converts it. Alpha is dropped,
      nothing is blended with a background.
    - Several frames or pages: refused.
    - EXIF orientation: applied, as Hugging Face datasets does and torchvision and timm do not. Orientation that cannot
      be read is none.

    Raises:
        UnreadableImageError: it cannot be read, or a rule refuses it.
    """
    try:
        image: Any = Image.open(io.BytesIO(encoded), formats=tuple(FORMATS))
        high_bytes = any(";16" in str(tile.args) for tile in image.tile)
        # The second frame of a JPEG is a preview or a gain map.
        if image.format not in ("JPEG", "MPO") and getattr(image, "n_frames", 1) > 1:
            raise UnreadableImageError(
                f"it holds {image.n_frames} frames or pages, and one is read: save the one that is meant as a file"
            )
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        picture = _to_8_bit(image)
    except UnidentifiedImageError as error:
        # Pillow's own words for it name an object in memory.
        raise UnreadableImageError(
            f"Pillow reads it as none of {', '.join(FORMATS)}: damaged, another format, or an unusual kind of pixels"
        ) from error
    except _UNREADABLE as error:
        raise UnreadableImageError(str(error)) from error
    if high_bytes and 0 < np.asarray(picture).max() < _LEAST_16_BIT_MAXIMUM >> 8:
        raise UnreadableImageError(_too_dark("its largest value"))
    return picture if turn is None else picture.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _UNREADABLE:
        return None


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
