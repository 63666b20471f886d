"""The rules by which image files become 8-bit gray or RGB pixels."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.decoding import FORMATS, IMAGE_SUFFIXES, decode
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


def test_floats_from_0_to_1_are_scaled() -> None:
    pixels = decode_image(tiff(np.linspace(0, 1, 4096).reshape(64, 64), "f"), "x")
    assert pixels.shape == (64, 64, 1)
    assert (pixels.min(), pixels.max(), pixels.mean()) == (0, 255, 127.5)
    np.testing.assert_array_equal(decode_image(tiff([[0, 0.5, 1.0000001]], "f"), "x")[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff([[0, 255]], "f"), "floating-point values are from 0 to 255, and only those from 0 to 1 are read"),
        (tiff([[-1, 1]], "f"), "are from -1 to 1"),
        (tiff([[0, np.nan]], "f"), "not all finite"),
        (tiff([[0, np.inf]], "f"), "not all finite"),
        (tiff([[-5, 70000]], "i4"), "32-bit integers from -5 to 70000, of no known range"),
        (tiff([[0, 255]], "i4"), "32-bit integers from 0 to 255, of no known range"),
        (tiff([[0, 4095]], "u2"), r"16 bits, of which its largest value, 4095, needs 12 or fewer"),
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


def color_png_of_16_bits(values: list[int]) -> bytes:
    """Pillow writes no such file: one row of RGB, of which each value is all three colors."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"\0" + np.repeat(np.array(values, ">u2"), 3).tobytes()
    header = struct.pack(">IIBBBBB", len(values), 1, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_12_bits_in_a_color_file_of_16_are_refused() -> None:
    np.testing.assert_array_equal(np.asarray(decode(color_png_of_16_bits([0, 65535])))[0, :, 0], [0, 255])
    with pytest.raises(DatasetError, match="16 bits, of which its largest value needs 12 or fewer"):
        decode_image(color_png_of_16_bits([0, 4095]), "x")


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
    for options in ({}, {"transparency": 0}):
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
