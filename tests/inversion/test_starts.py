from typing import Any

import pytest
import torch

from pipeline.inversion import InversionConfig, Teacher, invert, start_images

DENSE: dict[str, Any] = {"stop_steps": [], "stop_fractions": []}
STARTS: list[dict[str, Any]] = [{}, {"start": "dead_leaves"}, {"basis": "cosine"}, {"start_std": 0.3}]


@pytest.mark.parametrize("settings", STARTS)
def test_an_image_starts_alike_in_every_batch(tiny_teacher: Teacher, settings: dict[str, Any]) -> None:
    config = InversionConfig(**settings)
    together = start_images(tiny_teacher, [1, 2, 3], config)
    assert torch.equal(together[1:2], start_images(tiny_teacher, [2], config))
    assert not torch.equal(together[0], together[1])
    assert together.shape == (3, 3, 32, 32)


def test_noise_is_as_strong_as_asked(tiny_teacher: Teacher) -> None:
    weak = start_images(tiny_teacher, range(50), InversionConfig(start_std=0.3))
    assert weak.std().item() == pytest.approx(0.3, rel=0.02)


def test_dead_leaves_have_surfaces_and_edges(tiny_teacher: Teacher) -> None:
    leaves = start_images(tiny_teacher, range(20), InversionConfig(start="dead_leaves"))
    assert 0.7 < leaves.std().item() < 1.5
    steps = (leaves[..., 1:] - leaves[..., :-1]).abs()
    # Grain of 0.2 within a leaf; between two leaves, as much as between any two colors.
    assert steps.median() < 0.3
    assert steps.quantile(0.97) > 1.0


@pytest.mark.parametrize("settings", STARTS)
def test_no_iterations_give_the_start(tiny_teacher: Teacher, settings: dict[str, Any]) -> None:
    config = InversionConfig(iterations=0, **DENSE, **settings)
    result = invert(tiny_teacher, torch.tensor([1, 2]), config, seeds=[5, 6])
    assert torch.equal(result.images, start_images(tiny_teacher, [5, 6], config))


def test_the_start_does_not_move_the_views(tiny_teacher: Teacher) -> None:
    """A given start is inverted through the same views, whatever would have been drawn."""
    config = InversionConfig(iterations=3, **DENSE)
    start = start_images(tiny_teacher, [5], config)
    given = invert(tiny_teacher, torch.tensor([1]), config, seeds=[5], init=start)
    assert torch.equal(given.images, invert(tiny_teacher, torch.tensor([1]), config, seeds=[5]).images)


@pytest.mark.parametrize("scope", ["image", "published"])
def test_the_class_loss_falls_in_the_cosine_basis(tiny_teacher: Teacher, scope: Any) -> None:
    settings: dict[str, Any] = {"stop_steps": [5, 10], "stop_fractions": [0.5, 0.25], "jitter": 0.0, "flip": 0.0}
    config = InversionConfig(iterations=40, basis="cosine", lr=0.1, start_std=0.3, scope=scope, **settings)
    result = invert(tiny_teacher, torch.tensor([3, 1, 4]), config, seeds=[1, 2, 3])
    losses = result.losses["class_loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert result.images.amin() >= tiny_teacher.low.amin()
    assert result.images.amax() <= tiny_teacher.high.amax()
