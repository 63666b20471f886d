import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.inversion.basis import CosineBasis, check_falloff

CPU = torch.device("cpu")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("size", [16, 31])
def test_coefficients_and_images_are_the_same_in_two_ways(in_chans: int, size: int) -> None:
    basis = CosineBasis(in_chans, size, falloff=1.2, device=CPU)
    coefficients = normal(2, in_chans, size, size)
    images = basis.render(coefficients)
    assert images.shape == coefficients.shape
    torch.testing.assert_close(basis.analyze(images), coefficients, atol=1e-4, rtol=1e-4)


def test_the_gradient_is_that_of_autograd() -> None:
    basis = CosineBasis(3, 16, falloff=1.2, device=CPU)
    coefficients, gradient = normal(2, 3, 16, 16).requires_grad_(), normal(2, 3, 16, 16).flip(0)
    basis.render(coefficients).backward(gradient)
    torch.testing.assert_close(basis.pull_back(gradient), coefficients.grad)


@pytest.mark.parametrize(("falloff", "expected"), [(0.0, 0.0), (0.5, -1.0), (1.0, -2.0)])
def test_power_falls_with_the_frequency(falloff: float, expected: float) -> None:
    # Steeper than -2 it does not look in a Fourier transform, which sees a step between two sides of an image.
    images = CosineBasis(1, 64, falloff=falloff, device=CPU).render(normal(200, 1, 64, 64))
    power = torch.fft.rfft2(images).abs().square().mean(dim=(0, 1))[0, 4:24]
    octaves = torch.arange(4, 24).log()
    slope = ((octaves - octaves.mean()) * (power.log() - power.log().mean())).sum() / octaves.var(correction=0) / 20
    assert slope.item() == pytest.approx(expected, abs=0.25)


def test_noise_has_a_variance_of_1_and_more_brightness_than_color() -> None:
    images = CosineBasis(3, 32, falloff=1.0, device=CPU).render(normal(500, 3, 32, 32))
    assert images.square().mean().item() == pytest.approx(1, abs=0.1)
    gray = images.mean(dim=1, keepdim=True)
    assert gray.square().mean() > 2 * (images - gray).square().mean()


def test_a_falloff_whose_scales_float32_cannot_hold_is_refused() -> None:
    for size, falloff in ((224, 20.0), (32, 60.0), (16, 1e4)):
        with pytest.raises(ConfigError, match=f"^falloff is {falloff:g}: the finest waves of {size} x {size} pixels"):
            check_falloff(size, falloff)
    with pytest.raises(ConfigError, match="falloff is 60"):
        CosineBasis(3, 32, falloff=60.0, device=CPU)
    for size, falloff in ((224, 1.2), (1024, 4.0), (16, 0.0)):
        check_falloff(size, falloff)
