import pytest
import torch
from torch import nn

from pipeline.distillation import DistillationConfig, StudentConfig
from pipeline.distillation.schedule import lr_factor, make_optimizer
from pipeline.errors import ConfigError
from pipeline.models import ModelConfig
from pipeline.workers import WorkersConfig


@pytest.mark.parametrize(
    ("shape", "warmup", "values"),
    [
        ("constant", 0.0, {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        ("constant", 0.2, {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 1.0: 1.0}),
        ("cosine", 0.0, {0.0: 1.0, 0.25: 0.853553, 0.5: 0.5, 1.0: 0.0}),
        ("cosine", 0.5, {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        ("cosine", 1.0, {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}),
    ],
)
def test_learning_rate(shape: str, warmup: float, values: dict[float, float]) -> None:
    for progress, factor in values.items():
        assert lr_factor(progress, warmup=warmup, shape=shape) == pytest.approx(factor, abs=1e-6)


def make_config(**changes: object) -> DistillationConfig:
    values = {
        "teacher": ModelConfig(name="vit_tiny_patch16_224"),
        "student": StudentConfig(depth_pruned=[0]),
        "images": "images",
        "output": "output",
    }
    return DistillationConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_optimizers() -> None:
    weight = nn.Parameter(torch.zeros(1))
    sgd = make_optimizer([weight], make_config(optimizer="sgd", lr=0.1, momentum=0.5, weight_decay=0.01))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.1, 0.5, 0.01)
    assert isinstance(make_optimizer([weight], make_config(weight_decay=0.1)), torch.optim.AdamW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, not 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"token_weight": -1.0}, "token_weight must not be negative, not -1.0"),
        (
            {"token_weight": 0.5, "student": StudentConfig(depth_pruned=[0], linear_head=True)},
            "token_weight is 0.5, and student.linear_head trains the head alone",
        ),
        ({"labeled_split": "test"}, "labeled_split is 'test', and labeled is not set"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), not 1.0"),
        ({"epochs": 2, "warmup_epochs": 3.0}, r"warmup_epochs must lie in \[0, 2\], not 3.0"),
        (
            {"batch_size": 2, "workers": WorkersConfig(size=3)},
            "batch_size is 2, which is less than one image for each of 3 workers",
        ),
    ],
)
def test_impossible_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "one of the two; got neither"),
        ({"depth_pruned": [0], "model": ModelConfig(name="resnet18")}, "one of the two; got both"),
        ({"depth_pruned": []}, "depth_pruned is empty"),
        ({"depth_pruned": [1, 0]}, r"increasing, not \[1, 0\]"),
        ({"depth_pruned": [-1, 0]}, r"from 0, increasing, not \[-1, 0\]"),
    ],
)
def test_impossible_students(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudentConfig(**changes)  # type: ignore[arg-type]
