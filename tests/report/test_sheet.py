"""Contact sheets and curves as pictures: what is drawn, not how it looks."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.report.curve import curve, plot_bars
from pipeline.report.sheet import contact_sheet


def test_contact_sheet_enlarges_without_smoothing() -> None:
    checker = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None]
    sheet = contact_sheet([checker] * 3, ["a", "b", "c"], columns=2, cell=112)
    assert sheet.size == (2 * 118 + 6, 2 * 136 + 6)
    cell = np.asarray(sheet)[6:118, 6:118, 0]
    assert np.array_equal(cell, np.kron(checker[:, :, 0], np.ones((14, 14), np.uint8)))


def test_contact_sheet_takes_color_and_large_pictures_of_any_shape() -> None:
    red = np.zeros((300, 150, 3), np.uint8)
    red[:, :, 0] = 255
    sheet = contact_sheet([red], ["a caption that is far too long for its cell"], columns=5, cell=100)
    pixels = np.asarray(sheet)
    assert sheet.size == (112, 130)
    assert tuple(pixels[56, 56]) == (255, 0, 0)
    assert tuple(pixels[56, 12]) == (255, 255, 255)  # half as wide as the cell, in its middle
    assert (pixels[107:, :100] < 128).any()
    assert (pixels[:, 106:] == 255).all()  # the caption was cut


def test_contact_sheet_refuses_a_label_too_few() -> None:
    with pytest.raises(ConfigError, match=r"got 2, 1, 4"):
        contact_sheet([np.zeros((4, 4, 1), np.uint8)] * 2, ["a"], columns=4)


def test_curve_is_a_png_and_the_same_each_time() -> None:
    draw = {"training": [3.0, 2.0, 1.0], "held out": [2.5]}
    content = curve(draw, title="Loss", x_label="epoch", y_label="nats")
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert image.size == (704, 396)
    assert content == curve(draw, title="Loss", x_label="epoch", y_label="nats")
    assert content != curve({"training": [3.0, 2.0, 1.5]}, title="Loss", x_label="epoch", y_label="nats")


def test_bars_are_a_png_that_grows_with_the_names() -> None:
    heights = []
    for names in (["a"], ["a", "b", "c"]):
        content = plot_bars(
            names, {"w4a4": [1.0] * len(names), "w8a8": [0.5] * len(names)}, title="Layers", label="nats"
        )
        with Image.open(io.BytesIO(content)) as image:
            heights.append(image.height)
    assert heights[0] < heights[1]
