import numpy as np
import pytest

from benchmarks.shapes import CLASS_NAMES, make_scenes


@pytest.mark.parametrize("matching", [0.0, 0.9, 1.0])
def test_backgrounds_go_with_the_class_as_often_as_asked(matching: float) -> None:
    scenes = make_scenes(240, matching=matching, seed=1)
    assert (scenes.textures == scenes.labels).mean() == matching
    assert np.bincount(scenes.labels).tolist() == [40] * len(CLASS_NAMES)


def test_swapped_backgrounds_are_of_every_other_class() -> None:
    scenes = make_scenes(600, matching=0.0, seed=1)
    pairs = set(zip(scenes.labels.tolist(), scenes.textures.tolist(), strict=True))
    assert len(pairs) == len(CLASS_NAMES) * (len(CLASS_NAMES) - 1)


def test_masks_are_true() -> None:
    """Within its mask a shape has one color, which no pixel outside has."""
    scenes = make_scenes(60, matching=0.5, seed=2)
    for image, mask in zip(scenes.images, scenes.masks, strict=True):
        (color,) = np.unique(image[mask], axis=0)
        assert not (image[~mask] == color).all(axis=1).any()
        assert 0.05 < mask.mean() < 0.5


def test_nothing_but_shape_and_texture_tells_the_class() -> None:
    """The classes' mean colors, of foreground and of background, are those of all images, within sampling error."""
    scenes = make_scenes(3000, matching=1.0, seed=3)
    for side in (scenes.masks, ~scenes.masks):
        colors = np.stack([image[part].mean(axis=0) for image, part in zip(scenes.images, side, strict=True)])
        error = colors.std(axis=0) / (len(colors) / len(CLASS_NAMES)) ** 0.5
        for label in range(len(CLASS_NAMES)):
            mean = colors[scenes.labels == label].mean(axis=0)
            assert (abs(mean - colors.mean(axis=0)) < 4 * error).all(), CLASS_NAMES[label]


def test_scenes_follow_the_seed() -> None:
    first, again, other = (make_scenes(12, matching=0.5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
