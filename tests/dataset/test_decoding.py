"""The rules by which image files become 8-bit gray or RGB pixels."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.decoding import FORMATS, IMAGE_SUFFIXES, UnreadableImageError, decode
from pipeline.dataset.schema import decode_image
from pipeline.errors import DatasetError


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: Any, kind: str) -> bytes:
    return encoded(Image.fromarray(np.array(values, kind)), "TIFF")


def test_every_suffix_that_pillow_knows_of_these_formats_is_an_image() -> None:
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert known <= set(IMAGE_SUFFIXES)
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str) -> None:
    image = Image.new("RGB", (24, 16), (200, 40, 90))
    np.testing.assert_allclose(np.asarray(decode(encoded(image, kind))), np.asarray(image), atol=12)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer, not the file itself: run `git lfs"),
        (b"<html></html>", "it is a web page"),
        (b"\x89PNG\r\n\x1a\n and no more", "Pillow reads it as none of"),
        (b"\x81\xff\0", "Pillow reads it as none of"),
    ],
)
def test_what_lies_under_the_name_of_an_image_is_reported(content: bytes, reason: str) -> None:
    with pytest.raises(DatasetError, match=f"^image 'x' cannot be decoded: {reason}"):
        decode_image(content, "x")


def test_floats_from_0_to_1_are_scaled() -> None:
    pixels = decode_image(tiff(np.linspace(0, 1, 4096).reshape(64, 64), "f"), "x")
    assert pixels.shape == (64, 64, 1)
    assert (pixels.min(), pixels.max(), pixels.mean()) == (0, 255, 127.5)
    np.testing.assert_array_equal(decode_image(tiff([[0, 0.5, 1.0000001]], "f"), "x")[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff([[0, 255]], "f"), "floating-point values range from 0 to 255, and must lie in 0 to 1"),
        (tiff([[-1, 1]], "f"), "range from -1 to 1"),
        (tiff([[0, np.nan]], "f"), "not all finite"),
        (tiff([[0, np.inf]], "f"), "not all finite"),
        (tiff([[-5, 70000]], "i4"), "32-bit integers from -5 to 70000, of no known range"),
        (tiff([[0, 255]], "i4"), "32-bit integers from 0 to 255, of no known range"),
        (tiff([[0, 4095]], "u2"), r"16 bits, and its largest value, 4095, needs 12 or fewer"),
        (encoded(Image.fromarray(np.array([[0, 255]], "u2")), "PNG"), "its largest value, 255, needs 12 or fewer"),
    ],
)
def test_values_of_no_known_range_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DatasetError, match=f"image 'x' of 'v' cannot be decoded: .*{reason}"):
        decode_image(content, "x", "v")


def test_16_bits_keep_their_high_byte_and_all_of_a_pgm_s_range() -> None:
    values = np.array([[0, 256, 4096, 65535]], "u2")
    for kind in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(np.asarray(decode(encoded(Image.fromarray(values), kind)))[0], [0, 1, 16, 255])
    twelve = b"P5\n3 1\n4095\n" + np.array([0, 2048, 4095], ">u2").tobytes()
    np.testing.assert_array_equal(np.asarray(decode(twelve))[0], [0, 128, 255])
    assert np.asarray(decode(encoded(Image.new("I;16", (3, 2)), "PNG"))).max() == 0


def png_of_16_bits(rows: Any, color_type: int) -> bytes:
    """Pillow writes no colors of 16 bits. Rows are [H, W, C]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    values = np.array(rows, ">u2")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def tiff_of_colors(rows: Any, kind: str, *, photometric: int = 2, deflate: bool = False, **tags: int) -> bytes:
    """A TIFF of one strip, whose tags are names of PIL.TiffTags or as below; `kind` is NumPy's."""
    values = np.array(rows, kind)
    order, bits = (">" if kind[0] == ">" else "<"), 8 * values.itemsize
    height, width, channels = values.shape
    pixels = values.transpose(2, 0, 1).tobytes() if tags.get("planar") == 2 else values.tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    each = struct.pack(f"{order}{channels}H", *[bits] * channels)
    entries: dict[int, tuple[int, int, int]] = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, channels, 8 + len(pixels)) if channels > 2 else (3, 1, bits),
        259: (3, 1, 8 if deflate else 1),
        262: (3, 1, photometric),
        273: (4, 1, 8),
        277: (3, 1, channels),
        278: (4, 1, height),
        279: (4, 1, len(pixels)),
        284: (3, 1, tags.get("planar", 1)),
        339: (3, 1, tags.get("sample_format", 1)),
    }

    def entry(tag: int, form: int, count: int, value: int) -> bytes:
        packed = struct.pack(f"{order}H", value).ljust(4, b"\0") if (form, count) == (3, 1) else None
        return struct.pack(f"{order}HHI", tag, form, count) + (packed or struct.pack(f"{order}I", value))

    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entry(tag, *held) for tag, held in entries.items())
    head = struct.pack(f"{order}2sHI", b"MM" if order == ">" else b"II", 42, 8 + len(pixels) + len(each))
    return head + pixels + each + directory + b"\0" * 4


def ppm_of_16_bits(rows: Any, maximum: int = 65535, *, plain: bool = False) -> bytes:
    values = np.array(rows, ">u2")
    head = f"{'P3' if plain else 'P6'}\n{values.shape[1]} {values.shape[0]}\n{maximum}\n".encode()
    return head + (" ".join(map(str, values.ravel())).encode() if plain else values.tobytes())


def gray(*values: int, channels: int = 3) -> list[list[list[int]]]:
    """One row of pixels, each with one value in all colors."""
    return [[[value] * channels for value in values]]


# Kind of file → its bytes for a row of gray values.
COLORS_OF_16_BITS: dict[str, Callable[..., bytes]] = {
    "png": lambda *values: png_of_16_bits(gray(*values), 2),
    "png with alpha": lambda *values: png_of_16_bits([[[value] * 3 + [65535] for value in values]], 6),
    "gray png with alpha": lambda *values: png_of_16_bits([[[value, 65535] for value in values]], 4),
    "little-endian tiff": lambda *values: tiff_of_colors(gray(*values), "<u2"),
    "big-endian tiff": lambda *values: tiff_of_colors(gray(*values), ">u2"),
    "compressed tiff": lambda *values: tiff_of_colors(gray(*values), "<u2", deflate=True),
    "compressed big-endian tiff": lambda *values: tiff_of_colors(gray(*values), ">u2", deflate=True),
    "ppm": lambda *values: ppm_of_16_bits(gray(*values)),
    "plain ppm": lambda *values: ppm_of_16_bits(gray(*values), plain=True),
}


@pytest.mark.parametrize("kind", COLORS_OF_16_BITS)
def test_colors_of_16_bits_keep_their_high_byte_and_are_refused_where_12_bits_would_do(kind: str) -> None:
    make = COLORS_OF_16_BITS[kind]
    np.testing.assert_array_equal(decode_image(make(0, 0x8080, 65535), "x")[0, :, 0], [0, 0x80, 255])
    for dark in ((0, 255), (1, 0), (100, 0), (0, 3900)):
        with pytest.raises(DatasetError, match="16 bits, and its largest value needs 12 or fewer"):
            decode_image(make(*dark), "x")
    # Really black.
    assert decode_image(make(0, 0), "x").max() == 0


def test_gray_with_alpha_is_gray_in_16_bits_as_in_8() -> None:
    pixels = decode_image(COLORS_OF_16_BITS["gray png with alpha"](0, 0x8080, 65535), "x")
    np.testing.assert_array_equal(pixels, [[[0], [0x80], [255]]])


def test_little_ink_in_16_bits_is_refused_and_none_is_white() -> None:
    ink = [[[0, 0, 0, 200]]]
    with pytest.raises(DatasetError, match="its largest value needs 12 or fewer"):
        decode_image(tiff_of_colors(ink, "<u2", photometric=5), "x")
    assert decode_image(tiff_of_colors(np.zeros((1, 1, 4)), "<u2", photometric=5), "x").min() == 255


def test_a_ppm_is_scaled_by_the_largest_value_that_it_states() -> None:
    np.testing.assert_array_equal(decode_image(ppm_of_16_bits(gray(0, 4095), 4095), "x")[0, :, 0], [0, 255])
    with pytest.raises(DatasetError, match="almost black"):
        decode_image(ppm_of_16_bits(gray(0, 200), 4095), "x")
    np.testing.assert_array_equal(decode_image(b"P1\n2 1\n0 1\n", "x")[0, :, 0], [255, 0])
    np.testing.assert_array_equal(decode_image(b"P2\n2 1\n3\n0 3\n", "x")[0, :, 0], [0, 255])
    np.testing.assert_array_equal(decode_image(b"P6\n2 1\n255\n\0\0\0\1\1\1", "x")[0, :, 0], [0, 1])


def test_a_dark_bmp_of_5_and_6_bits_a_color_has_no_16() -> None:
    head = struct.pack("<2sIHHI", b"BM", 70, 0, 0, 66) + struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    content = head + struct.pack("<III", 0xF800, 0x07E0, 0x001F) + struct.pack("<HH", 1, 0)
    np.testing.assert_array_equal(decode_image(content, "x")[0, 0], [0, 0, 8])


@pytest.mark.parametrize("kind", ["<i1", "<i2"])
def test_signed_integers_are_refused(kind: str) -> None:
    content = tiff_of_colors([[[-128], [127]]], kind, photometric=1, sample_format=2)
    with pytest.raises(DatasetError, match="it stores signed integers, of no known range"):
        decode_image(content, "x")


def test_planes_of_more_than_8_bits_are_refused() -> None:
    with pytest.raises(DatasetError, match="in a plane of more than 8 bits"):
        decode_image(tiff_of_colors(gray(0, 65535), "<u2", planar=2), "x")


def test_gray_tiffs_in_which_white_is_0_are_inverted_or_refused() -> None:
    assert np.asarray(decode(encoded(Image.new("L", (2, 1), 255), "TIFF", tiffinfo={262: 0}))).max() in (0, 255)
    with pytest.raises(DatasetError, match="stores white as 0"):
        decode_image(encoded(Image.new("I;16", (2, 1), 65535), "TIFF", tiffinfo={262: 0}), "x")


@pytest.mark.parametrize(
    ("mode", "kind", "color", "expected"),
    [
        ("1", "PNG", 1, [255]),
        ("LA", "PNG", (9, 0), [9]),
        ("RGBA", "PNG", (1, 2, 3, 0), [1, 2, 3]),
        ("CMYK", "TIFF", (0, 255, 255, 0), [255, 0, 0]),
        ("YCbCr", "TIFF", (128, 128, 128), [128, 128, 128]),
        ("LAB", "TIFF", (255, 128, 128), [255, 255, 255]),
    ],
)
def test_other_modes_lose_alpha_and_become_gray_or_rgb(mode: str, kind: str, color: Any, expected: Any) -> None:
    pixels = decode_image(encoded(Image.new(mode, (2, 2), color), kind), "x")
    np.testing.assert_allclose(pixels[0, 0].astype(int), expected, atol=1)


def test_a_palette_becomes_its_colors_and_a_transparent_one_keeps_them() -> None:
    image = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    for options in ({}, {"transparency": 0}, {"transparency": bytes((0, 128))}):
        np.testing.assert_array_equal(decode_image(encoded(image, "PNG", **options), "x")[0, 0], [10, 200, 30])


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_several_frames_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 255)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DatasetError, match="holds 2 frames or pages"):
        decode_image(content, "x")


def test_the_preview_that_a_camera_adds_to_a_photo_is_no_second_frame() -> None:
    photo = Image.new("RGB", (8, 8), (200, 200, 200))
    content = encoded(photo, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    np.testing.assert_array_equal(decode_image(content, "x"), np.full((8, 8, 3), 200))


def test_orientation_that_cannot_be_read_is_none() -> None:
    content = encoded(Image.new("L", (4, 2)), "WEBP", exif=b"Exif\0\0nonsense")
    assert decode(content).size == (4, 2)


def test_a_jpeg_that_was_filled_up_with_zeros_is_refused_and_other_bytes_after_its_end_are_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for options in ({}, {"progressive": True}, {"exif": b"Exif\0\0\xff\xd9"}, {"format": "MPO"}):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, **{"format": "JPEG", **options})
        whole = buffer.getvalue()
        for rest in (b"", bytes(999), b"\xff\xda" + bytes(99), whole[: len(whole) // 2]):
            assert decode(whole + rest).size == (64, 64)
        for stop in (len(whole) // 2, len(whole) - 2):
            with pytest.raises(UnreadableImageError, match=r"without an end marker|is truncated"):
                decode(whole[:stop] + bytes(len(whole)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_of_every_format_are_one_line() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    reasons = []
    for kind in FORMATS:
        content = np.frombuffer(encoded(image, kind), np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[rng.integers(0, min(300, len(damaged)), 4)] = rng.integers(0, 256, 4)
            try:
                decode_image(damaged.tobytes(), "x")
            except DatasetError as error:
                reasons.append(str(error))
    assert len(reasons) > 100
    assert not [reason for reason in reasons if "\n" in reason]
