"""Families that cannot be run on a token subset are refused with the reason."""

from typing import Any

import pytest
import timm
import torch

from pipeline.errors import ModelError
from pipeline.vit.families import check_family
from tests.conftest import make_tiny_model

REFUSED = {
    "swin_tiny_patch4_window7_224": "no patch_drop slot",
    "beit_base_patch16_224": "no patch_drop slot",
    "hiera_tiny_224": "no patch_drop slot",
    "resnet18": "no patch_drop slot",
    "samvit_base_patch16_224": "does not use its patch_drop slot in evaluation",
    "vit_tiny_r_s16_p8_224": "embedded by a HybridEmbed",
}


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_other_families_are_refused_with_the_reason(name: str, reason: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    with pytest.raises(ModelError, match=f"{type(model).__name__} cannot be run on a token subset: .*{reason}"):
        check_family(model)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_classes": 0}, "no classifier head"),
        ({"img_size": (32, 64)}, "not square"),
        ({"patch_size": (8, 4)}, "not square"),
    ],
)
def test_other_shapes_are_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        check_family(make_tiny_model(**changes))
