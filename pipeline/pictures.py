"""Channels of pictures: those that datasets hold, and models read."""

import numpy as np
from PIL import Image

# Gray, or red, green and blue.
PICTURE_CHANNELS = (1, 3)


def describe_channels(name: str, channels: int) -> str:
    """Say that the number of a model's channels is not that of pictures."""
    return f"model {name!r} reads images of {channels} channels: datasets hold gray (1) or RGB (3) pictures"


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Return uint8 pixels [H, W, C], of 1 or 3 channels, as a picture."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
