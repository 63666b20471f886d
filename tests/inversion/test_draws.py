"""Noise and jitter from seeds."""

import torch

from pipeline.inversion import Teacher, start_images
from pipeline.inversion.draws import draw_jitter, generators_of


def test_an_image_starts_from_its_own_seed(tiny_teacher: Teacher) -> None:
    together = start_images(tiny_teacher, [1, 2, 3])
    assert torch.equal(together[1:2], start_images(tiny_teacher, [2]))
    assert not torch.equal(together[0], together[1])
    assert abs(float(together.mean())) < 0.05
    assert abs(float(together.std()) - 1) < 0.05


def test_an_image_draws_the_same_jitter_whatever_its_neighbors() -> None:
    def draw(seeds: list[int]) -> torch.Tensor:
        return draw_jitter(generators_of(seeds), 50, largest_shift=4, flip_probability=0.5)

    assert torch.equal(draw([1, 2, 3])[:, 1], draw([2])[:, 0])
    drawn = draw([1])[:, 0]
    assert set(drawn[:, 2].tolist()) == {0, 1}
    assert drawn[:, :2].min() == -4
    assert drawn[:, :2].max() == 4
