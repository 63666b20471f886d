"""One tiny model, exported once for the whole folder: an export takes a second."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from pipeline.quantization.batches import Batch
from pipeline.quantization.graphs import export_images
from pipeline.quantization.settings import Placement
from tests.conftest import make_tiny_model


@pytest.fixture(scope="session")
def model() -> nn.Module:
    return make_tiny_model()


@pytest.fixture(scope="session")
def programs(model: nn.Module) -> Callable[[Placement], ExportedProgram]:
    """The tiny model exported for a placement."""
    return cache(lambda placement: export_images(model, placement))


@pytest.fixture(scope="session")
def ragged() -> list[Batch]:
    """Images that keep 3, 7 and all 16 of their patches."""
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(size, 3, 32, 32, generator=generator),
            torch.stack([torch.randperm(16, generator=generator)[:kept].sort().values for _ in range(size)]),
            [f"image-{kept}-{number}" for number in range(size)],
        )
        for kept, size in ((3, 2), (7, 5), (16, 1))
    ]
