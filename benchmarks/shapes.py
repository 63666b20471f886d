"""Colored shapes on textured backgrounds, with their true masks: images whose background may go with the class.

The shape is the class; its color, size and place, and the colors of the background, say nothing about it. There is a
texture for each class, and a set of images states how often the background is the class's own. Where it mostly is, a
model may learn the texture in place of the shape; where it never is, such a model is found out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from examples.digits.teacher import IMAGE_SIZE, LabeledImages

# Which pixels a shape of radius 1 around the origin covers; x to the right, y down. Areas are about alike.
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: x**2 + y**2 < 0.8,
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.2),
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "diamond": lambda x, y: abs(x) + abs(y) < 1.1,
    "triangle": lambda x, y: (y < 0.8) & (2 * abs(x) < y + 1.2),
    "plus": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.36) & (np.maximum(abs(x), abs(y)) < 1),
}
CLASS_NAMES = list(_SHAPES)

# What waves along a texture, in pixels; the background of the class at the same place in `CLASS_NAMES`.
_TEXTURES: list[Callable[[np.ndarray, np.ndarray], np.ndarray]] = [
    lambda x, y: y,
    lambda x, y: x,
    lambda x, y: (x + y) / 2**0.5,
    lambda x, y: (x - y) / 2**0.5,
    lambda x, y: np.hypot(x - IMAGE_SIZE / 2, y - IMAGE_SIZE / 2),
    lambda x, y: np.where((x // 4 + y // 4) % 2 == 0, x, y),
]
_PERIOD = (4.0, 7.0)  # pixels
_RADIUS = (8.0, 12.0)  # pixels
# Difference between a texture's dark and bright, as a share of white: with 0.2 to 0.4, a teacher saw only textures.
_CONTRAST = (0.14, 0.28)


@dataclass(frozen=True)
class Scenes:
    """N images of a shape each, and the truth about them.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: the shape, int64 [N], an index into `CLASS_NAMES`.
        textures: the class that the background belongs to, int64 [N].
        masks: bool [N, H, W], true where the shape is.
    """

    images: np.ndarray
    labels: np.ndarray
    textures: np.ndarray
    masks: np.ndarray

    def split(self) -> LabeledImages:
        """Images and labels alone, as training reads them."""
        return LabeledImages(self.images, self.labels)


def make_scenes(count: int, *, matching: float, seed: int) -> Scenes:
    """Draw images of all classes in turn.

    Args:
        count: of images.
        matching: share of them whose background is their class's own; that of the others is drawn from the other
            classes'.
        seed: of everything.
    """
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASS_NAMES)
    others = (labels + random.integers(1, len(CLASS_NAMES), count)) % len(CLASS_NAMES)
    swapped = random.permutation(count) >= round(matching * count)
    textures = np.where(swapped, others, labels)
    drawn = [_draw(*pair, random) for pair in zip(labels.tolist(), textures.tolist(), strict=True)]
    images, masks = (np.stack(parts) for parts in zip(*drawn, strict=True))
    return Scenes(images, labels, textures, masks)


def _draw(shape: int, texture: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image uint8 [H, W, 3] and its mask bool [H, W]."""
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float64)
    radius = random.uniform(*_RADIUS)
    center = random.uniform(radius, IMAGE_SIZE - 1 - radius, 2)
    mask = _SHAPES[CLASS_NAMES[shape]]((x - center[0]) / radius, (y - center[1]) / radius)
    phase = _TEXTURES[texture](x, y) / random.uniform(*_PERIOD) + random.uniform()
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * phase)[..., None]
    dark = random.uniform(0, 0.2, 3)
    background = dark + wave * random.uniform(*_CONTRAST, 3)
    # Brighter than any background in one channel at least, dimmer in another.
    color = random.permutation([random.uniform(0.8, 1), random.uniform(0.2, 1), random.uniform(0, 0.4)])
    pixels = np.where(mask[..., None], color, background)
    return np.round(pixels * 255).astype(np.uint8), mask
