"""Views: rotated, scaled, blurred and noisy images, whose gradient reaches the pixels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from pipeline.errors import ConfigError
from pipeline.inversion import Inversion, InversionConfig, Teacher, ViewConfig, invert
from pipeline.inversion.draws import generators_of
from pipeline.inversion.views import ViewDraws, draw_views, rescale, rotate, show_view

DENSE: dict[str, Any] = {"iterations": 12, "lr": 0.1, "stop_steps": [], "stop_fractions": []}
SPARSE: dict[str, Any] = {"iterations": 12, "lr": 0.1, "stop_steps": [4, 8], "stop_fractions": [0.5, 0.25]}
ALL = ViewConfig(degrees=10, scale=0.1, blur=0.7, noise=0.3)
TARGETS, SEEDS = torch.tensor([3, 1, 4, 1, 5]), [10, 11, 12, 13, 14]


@pytest.fixture(scope="module")
def blobs() -> Tensor:
    """A smooth picture whose border is empty, [1, 1, 32, 32]."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    large = torch.exp(-((rows - 12) ** 2 + (columns - 19) ** 2) / 18)
    small = torch.exp(-((rows - 20) ** 2) / 8 - (columns - 12) ** 2 / 20)
    return (large + small / 2)[None, None]


@pytest.mark.parametrize("angle", [10.0, -10.0, 30.0])
def test_images_are_rotated_as_by_torchvision(blobs: Tensor, angle: float) -> None:
    expected = transforms.rotate(blobs, angle, interpolation=InterpolationMode.BILINEAR)
    # Three interpolations along lines smooth a little more than one in the plane.
    assert (rotate(blobs, torch.tensor([angle])) - expected).abs().max() < 0.025
    assert (blobs - expected).abs().max() > 0.15


@pytest.mark.parametrize("size", [0.9, 1.1])
def test_images_are_scaled_as_by_torchvision(blobs: Tensor, size: float) -> None:
    expected = transforms.affine(blobs, 0, [0, 0], size, [0, 0], interpolation=InterpolationMode.BILINEAR)
    scaled = rescale(blobs, torch.tensor([size]), torch.zeros(1))
    # At 0.9 the outermost pixels show the opposite side here, and nothing there.
    assert torch.allclose(scaled[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], atol=1e-5)


def test_images_are_blurred_as_by_torchvision(blobs: Tensor) -> None:
    expected = transforms.gaussian_blur(blobs, [9, 9], [0.7, 0.7])
    blurred = rescale(blobs, torch.ones(1), torch.tensor([0.7]))
    assert torch.allclose(blurred[..., 5:-5, 5:-5], expected[..., 5:-5, 5:-5], atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda images, amount: rotate(images, 10 * amount),
        lambda images, amount: rescale(images, 1 + amount / 10, amount.abs()),
    ],
)
def test_the_gradient_is_exact(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    images = torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    amount = torch.tensor([0.8, -0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda pixels: change(pixels, amount), images.requires_grad_())


def draw(strengths: ViewConfig, seeds: list[int], *, alike: bool = False) -> ViewDraws:
    drawn = draw_views(generators_of(seeds), 6, strengths, alike=alike, device=torch.device("cpu"))
    assert drawn is not None
    return drawn


def test_an_image_is_seen_alike_whatever_its_neighbors() -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = show_view(images, draw(ALL, [1, 2, 3]).at(5, moves=True))
    alone = show_view(images[1:2], draw(ALL, [2]).at(5, moves=True))
    assert torch.allclose(together[1:2], alone, atol=1e-6)
    kept = draw(ALL, [1, 2, 3]).keep(torch.tensor([1])).at(5, moves=True)
    assert torch.equal(show_view(images[1:2], kept), alone)


def test_a_batch_of_one_draw_differs_in_its_noise_alone() -> None:
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    first, second = show_view(images, draw(ViewConfig(degrees=10, scale=0.1), [1, 2], alike=True).at(0, moves=True))
    assert torch.equal(first, second)
    first, second = show_view(images, draw(ALL, [1, 2], alike=True).at(0, moves=True))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("strength", [{"degrees": 1.0}, {"scale": 0.01}, {"blur": 1.0}, {"noise": 0.01}])
def test_each_strength_changes_the_images(tiny_teacher: Teacher, strength: dict[str, float]) -> None:
    plain, changed = (
        Inversion(tiny_teacher, TARGETS, InversionConfig(**DENSE, views=views), seeds=SEEDS)
        for views in (ViewConfig(), ViewConfig(**strength))
    )
    for run in (plain, changed):
        run.step()
    assert plain.images.grad is not None
    assert changed.images.grad is not None
    assert not torch.equal(plain.images.grad, changed.images.grad)


def test_a_strength_of_zero_is_no_view_to_the_last_bit(tiny_teacher: Teacher) -> None:
    """Also beside a strength that is not zero, whose own numbers stay the same."""
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    still = draw(ALL, [1, 2]).at(0, moves=True)
    none = ViewDraws(ViewConfig(), still.numbers, still.noise_seeds)
    assert show_view(images, none) is images
    zero = ViewDraws(ALL, torch.zeros(2, 4), still.noise_seeds)
    assert torch.equal(show_view(images, zero), images)
    assert draw_views(generators_of([1]), 6, ViewConfig(), alike=False, device=torch.device("cpu")) is None
    run = Inversion(tiny_teacher, TARGETS, InversionConfig(**DENSE), seeds=SEEDS)
    assert run._view().changed().images is run.images


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_another_split_makes_the_same_images(tiny_teacher: Teacher, micro_batch: int) -> None:
    whole, split = (
        invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE, views=ALL, micro_batch=size), seeds=SEEDS)
        for size in (None, micro_batch)
    )
    assert torch.equal(whole.keep_indices, split.keep_indices)
    assert ((whole.images - split.images).abs() < 0.02).float().mean() > 0.999


def test_stopped_patches_end_the_moves_and_leave_the_noise(tiny_teacher: Teacher) -> None:
    run, seen = Inversion(tiny_teacher, TARGETS, InversionConfig(**SPARSE, views=ALL), seeds=SEEDS), []
    for step in range(12):
        run.num_steps = step
        draws = run._view().draws
        seen.append("still" if draws is None else "moved" if draws.moves else "noisy")
    assert seen == ["moved"] * 3 + ["still"] * 2 + ["noisy"] * 2 + ["still"] * 2 + ["noisy"] * 3


def test_views_leave_start_and_jitter_as_they_were(tiny_teacher: Teacher) -> None:
    plain, viewed = (
        Inversion(tiny_teacher, TARGETS, InversionConfig(**DENSE, views=views), seeds=SEEDS)
        for views in (ViewConfig(), ALL)
    )
    assert torch.equal(plain.images, viewed.images)
    assert torch.equal(plain._jitter, viewed._jitter)


def test_a_given_jitter_leaves_the_views_as_they_were(tiny_teacher: Teacher) -> None:
    config = InversionConfig(**DENSE, views=ALL)
    drawn = Inversion(tiny_teacher, TARGETS, config, seeds=SEEDS)
    given = Inversion(tiny_teacher, TARGETS, config, seeds=SEEDS, jitter=torch.zeros(12, 5, 3, dtype=torch.int64))
    assert drawn._views is not None
    assert given._views is not None
    assert torch.equal(drawn._views.numbers, given._views.numbers)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"degrees": 90.0}, r"views.degrees must lie in \[0, 45\], not 90.0"),
        ({"scale": 1.0}, r"views.scale must lie in \[0, 1\), not 1.0"),
        ({"blur": -1.0}, "views.blur must not be negative, not -1.0"),
        ({"noise": -0.3}, "views.noise must not be negative, not -0.3"),
        ({"noise": float("nan")}, "noise must be finite, not nan"),
    ],
)
def test_impossible_strengths_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViewConfig(**wrong)


def test_what_ends_with_the_first_stop_is_told() -> None:
    told = InversionConfig(**SPARSE, views=ALL).notices(16)
    assert told == ["views.degrees, scale and blur need whole images: they apply to the first 3 steps only"]
    assert InversionConfig(**SPARSE, views=ViewConfig(noise=0.3)).notices(16) == []
    assert InversionConfig(**DENSE, views=ALL).notices(16) == []


def test_moves_that_no_step_would_show_are_refused() -> None:
    schedules: list[dict[str, Any]] = [{"stop_steps": [1, 8], "stop_fractions": [0.5, 0.5]}, {"rebirth": 12}]
    for schedule in schedules:
        config = InversionConfig(iterations=12, **schedule, views=ViewConfig(degrees=10, noise=0.3))
        with pytest.raises(
            ConfigError, match=r"^views.degrees 10, scale 0 and blur 0 are of whole images, and patches go"
        ):
            config.check(16)
        InversionConfig(iterations=12, **schedule, views=ViewConfig(noise=0.3)).check(16)
