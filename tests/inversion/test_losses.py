import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.inversion import losses


def edge() -> torch.Tensor:
    """One 2 × 2 image with one bright pixel."""
    return torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])


def test_tv_l2_is_four_norms() -> None:
    assert losses.tv_l2(edge()).tolist() == pytest.approx([3.0])  # right 1, below 1, one diagonal 1, the other 0


def test_tv_l1_is_four_means() -> None:
    assert losses.tv_l1(edge()).tolist() == pytest.approx([0.5 + 0.5 + 1.0 + 0.0])


def test_published_tv_runs_over_the_batch() -> None:
    batch = edge().repeat(4, 1, 1, 1)
    assert losses.tv_l2(batch).tolist() == pytest.approx([3.0] * 4)
    assert losses.tv_l2_batch(batch).item() == pytest.approx(2 * 3.0)


def test_tv_of_a_flat_image_has_a_finite_gradient() -> None:
    flat = torch.zeros(1, 1, 4, 4, requires_grad=True)
    losses.tv_l2(flat).sum().backward()
    assert flat.grad is not None
    assert torch.equal(flat.grad, torch.zeros_like(flat))


@pytest.mark.parametrize("tv", [losses.tv_l2, losses.tv_l2_batch])
def test_tv_l2_gradient_is_that_of_finite_differences(tv: Callable[[torch.Tensor], torch.Tensor]) -> None:
    images = torch.rand(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(tv, images.requires_grad_())


def test_pixel_l2() -> None:
    assert losses.pixel_l2(torch.full((2, 1, 2, 2), 3.0)).tolist() == pytest.approx([6.0, 6.0])


def test_entropy_is_larger_for_patches_that_differ() -> None:
    angles = torch.linspace(0, torch.pi / 2, 40)
    spread = torch.stack([angles.cos(), angles.sin()], dim=1).unsqueeze(0)
    alike = torch.tensor([1.0, 0.0]) + 1e-3 * torch.randn(1, 40, 2, generator=torch.Generator().manual_seed(0))
    # Similarities all over the unit interval: a uniform density's entropy, log(1) = 0, is the most there can be.
    assert -1 < losses.patch_similarity_entropy([spread]).item() < 0
    assert losses.patch_similarity_entropy([alike]).item() < -3


def test_climbing_the_entropy_makes_patches_less_alike() -> None:
    outputs = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0)) * 0.05 + 1
    outputs.requires_grad_()
    optimizer = torch.optim.Adam([outputs], lr=0.05)
    before = losses.patch_similarity_entropy([outputs]).detach()
    spread_before = _similarity_spread(outputs)
    for _ in range(30):
        optimizer.zero_grad()
        (-losses.patch_similarity_entropy([outputs]).sum()).backward()
        optimizer.step()
    assert (losses.patch_similarity_entropy([outputs]) > before).all()
    assert (_similarity_spread(outputs) > 2 * spread_before).all()


def _similarity_spread(outputs: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(outputs.detach(), dim=-1)
    return (unit @ unit.transpose(1, 2)).flatten(1).std(dim=1)


@pytest.fixture
def network() -> nn.Module:
    """A CNN whose BatchNorm layer has seen images of mean 0.5 and deviation 0.1."""
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=None), nn.ReLU())
    cnn.train()
    with torch.no_grad():
        for _ in range(10):
            cnn(0.5 + 0.1 * torch.randn(8, 1, 8, 8))
    return cnn


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_descending_the_feature_prior_reaches_the_statistics_of_training(
    network: nn.Module, batch_statistics: bool
) -> None:
    prior = losses.FeaturePrior(network, batch_statistics=batch_statistics)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    before = prior(images).detach().sum()
    optimizer = torch.optim.Adam([images], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        prior(images).sum().backward()
        optimizer.step()
    assert prior(images).sum() < 0.1 * before
    assert images.mean().item() == pytest.approx(0.5, abs=0.1)
    assert not network.training


def test_feature_prior_takes_each_image_alone_unless_published(network: nn.Module) -> None:
    images = torch.randn(4, 1, 8, 8)
    alone = losses.FeaturePrior(network)
    assert torch.allclose(alone(images)[:2], alone(images[:2]))
    assert losses.FeaturePrior(network, batch_statistics=True)(images).ndim == 0


def test_feature_prior_needs_batch_norm() -> None:
    with pytest.raises(ValueError, match="no BatchNorm2d"):
        losses.FeaturePrior(nn.Conv2d(1, 1, 1))


def test_divergence_of_answers_that_agree_and_that_exclude_each_other() -> None:
    same = torch.randn(3, 5)
    assert torch.allclose(losses.js_divergence(same, same + 7, 3.0), torch.zeros(3), atol=1e-6)
    sure = 100 * torch.eye(4)
    assert torch.allclose(losses.js_divergence(sure, sure.roll(1, 0), 1.0), torch.full((4,), math.log(2)))


def test_divergence_by_its_definition() -> None:
    first, second = torch.randn(2, 6, 4)
    p, q = (first / 3).softmax(dim=1), (second / 3).softmax(dim=1)
    middle = (p + q) / 2
    expected = 0.5 * ((p * (p / middle).log()).sum(dim=1) + (q * (q / middle).log()).sum(dim=1))
    assert torch.allclose(losses.js_divergence(first, second, 3.0), expected, atol=1e-6)
    assert torch.allclose(losses.js_divergence(second, first, 3.0), expected, atol=1e-6)
