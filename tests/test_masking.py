"""Masking: the patch grid of a classifier's last stage, and models that have none."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.masking import MaskedModel, fill_stopped


@pytest.mark.parametrize(
    ("name", "size", "patch_size"),
    [
        ("swin_tiny_patch4_window7_224", 224, 32),
        ("beit_base_patch16_224", 224, 16),
        ("hiera_tiny_224", 224, 32),
        ("convnext_atto", 96, 32),
        ("efficientformer_l1", 224, 32),
        # The last stage's areas do not tile the image: those of the stage before do.
        ("levit_128s", 224, 32),
        ("resnet10t", 48, 16),
        ("resnet10t", 32, 16),
    ],
)
def test_a_patch_is_a_token_of_the_deepest_stage_that_tiles_the_image(name: str, size: int, patch_size: int) -> None:
    masked = MaskedModel(timm.create_model(name, num_classes=3), image_size=(size, size), in_chans=3)
    assert (masked.patch_size, masked.grid_size) == (patch_size, size // patch_size)


@pytest.mark.parametrize(
    ("name", "arguments", "size", "message"),
    [
        ("resnet10t", {"num_classes": 0}, (64, 64), "no classifier head"),
        ("resnet10t", {}, (64, 128), r"not square: \(64, 128\)"),
        ("resnet10t", {}, (47, 47), r"patches of \[2, 4, 8, 16, 32\] pixels form no grid in its 47 pixels"),
        ("resnet10t", {"in_chans": 1}, (64, 64), r"cannot read images \[3, 64, 64\]"),
        ("beit_base_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 1}, (64, 64), "cannot read images"),
        ("test_vit", {"global_pool": ""}, (160, 160), r"\[B, 101, 10\] \(a token sequence\), which are not logits"),
    ],
)
def test_models_that_cannot_be_masked(
    name: str, arguments: dict[str, Any], size: tuple[int, int], message: str
) -> None:
    model = timm.create_model(name, **{"num_classes": 10, **arguments})
    with pytest.raises(ModelError, match=message):
        MaskedModel(model, image_size=size, in_chans=3)


def test_a_model_of_unknown_stride_is_refused() -> None:
    model: Any = nn.Linear(3, 3)
    model.num_classes = 3
    with pytest.raises(ModelError, match="Linear cannot be masked: it does not state the stride"):
        MaskedModel(model, image_size=(64, 64), in_chans=3)


def test_stopped_patches_show_the_mean_color() -> None:
    filled = fill_stopped(torch.ones(1, 2, 6, 6), torch.tensor([[1, 3]]), 2)
    assert filled[0, 0, :3].tolist() == [[0, 0, 0, 1, 1, 1]] * 3
    assert filled[0, 1, 3:].tolist() == [[0, 0, 0, 1, 1, 1]] * 3
