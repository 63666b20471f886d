"""Cosine basis of images, scaled as in photographs, in which the optimizer may work instead of in pixels.

In a photograph, amplitudes fall with the frequency f about as 1/f (Field, J. Opt. Soc. Am. A, 1987), and pixels differ
in brightness more than in color. An optimizer that changes pixels knows neither: it makes grain of saturated colors, to
which a network responds. Changing coefficients that are scaled as in photographs prefers what photographs show (Olah,
Mordvintsev & Schubert, Feature Visualization, Distill 2017, section Preconditioning and Parameterization, with a
Fourier transform). Cosines need no complex numbers, and one side of an image does not continue on the other.
"""

import math

import torch
from torch import Tensor

from pipeline.errors import ConfigError

# Brightness, red against blue, green against magenta (Ohta, Kanade & Sakai, 1980), and how much of each there is.
_OPPONENTS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (-0.5, 1.0, -0.5))
_SHARES = (1.0, 0.45, 0.27)


class CosineBasis:
    """Convert images to scaled cosine coefficients and back; coefficients drawn from N(0, 1) make images of variance 1.

    Args:
        in_chans: number of channels. Three channels are taken as RGB, and decorrelated as in photographs.
        size: height and width in pixels.
        falloff: exponent α: a coefficient of frequency f is scaled by f^-α.
        device: device of the images.

    Raises:
        ConfigError: as `check_falloff`.
    """

    def __init__(self, in_chans: int, size: int, *, falloff: float, device: torch.device) -> None:
        check_falloff(size, falloff)
        self._waves = _cosines(size).to(device)
        self._scales = _scales(size, falloff).to(device)
        self._colors = _color_basis(in_chans).to(device)

    def render(self, coefficients: Tensor) -> Tensor:
        """Return the images [B, C, H, W] of coefficients of the same shape."""
        waves = self._waves.mT @ (coefficients * self._scales) @ self._waves
        return torch.einsum("bkhw,kc->bchw", waves, self._colors)

    def analyze(self, images: Tensor) -> Tensor:
        """Return the coefficients that `render` turns into these images."""
        colors = torch.einsum("bchw,kc->bkhw", images, torch.linalg.inv(self._colors).mT)
        return self._waves @ colors @ self._waves.mT / self._scales

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to the coefficients, given that with respect to the images."""
        colors = torch.einsum("bchw,kc->bkhw", gradient, self._colors)
        return self._waves @ colors @ self._waves.mT * self._scales


def check_falloff(size: int, falloff: float) -> None:
    """Refuse an exponent with which float32 cannot hold the scales of the finest waves: images would not be finite.

    Args:
        size: height and width of the images in pixels.
        falloff: exponent α of `CosineBasis`.

    Raises:
        ConfigError: the exponent is too large for images of this size.
    """
    smallest = _scales(size, falloff).min().item()
    # NaN, of powers that were not finite, is not less than anything.
    if not smallest >= torch.finfo(torch.float32).tiny:
        raise ConfigError(
            f"falloff is {falloff:g}: the finest waves of {size} x {size} pixels count {smallest:g} then, too little "
            "for float32, and images would not be finite; lower it (the default is 1.2)"
        )


def _cosines(size: int) -> Tensor:
    """Return the orthonormal cosine transform, DCT-II: one wave per row, [size, size]."""
    place, wave = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    waves = math.sqrt(2 / size) * torch.cos(math.pi / size * wave[:, None] * (place + 0.5))
    waves[0] /= math.sqrt(2)
    return waves.float()


def _scales(size: int, falloff: float) -> Tensor:
    """Return the scale of each coefficient [size, size]; the mean of the squares is 1.

    The frequency is in waves per image; a constant counts as half a wave.
    """
    half_waves = torch.arange(size, dtype=torch.float64)
    frequency = torch.hypot(half_waves[:, None], half_waves).clamp(min=1) / 2
    scales = frequency**-falloff
    return (scales / scales.square().mean().sqrt()).float()


def _color_basis(in_chans: int) -> Tensor:
    """Return the color of each component [K, C]; the mean variance of the channels is 1."""
    if in_chans != 3:
        return torch.eye(in_chans, dtype=torch.float32)
    opponents, shares = (torch.tensor(values, dtype=torch.float32) for values in (_OPPONENTS, _SHARES))
    shares = shares / shares.square().mean().sqrt()
    return opponents / opponents.norm(dim=1, keepdim=True) * shares.unsqueeze(1)
