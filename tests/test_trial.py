"""Models whose output is not the logits of a classifier are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.trial import try_out


def logits(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :4]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda x: (logits(x), logits(x)), r"a tuple of 2, not one tensor of logits"),
        (lambda x: {"logits": logits(x)}, r"a dict with the keys \['logits'\]"),
        (lambda x: [logits(x)], "a list of 1"),
        (lambda x: logits(x)[:, None], r"\[B, 1, 4\] \(a token sequence\)"),
        (lambda x: x, r"\[B, 3, 8, 8\] \(a feature or segmentation map\)"),
        (lambda x: logits(x)[:, 0], r"\[B\]"),
        (lambda x: logits(x)[:, :3], "3 values per image: a classifier of 4 classes"),
        (lambda x: logits(x).softmax(1), "probabilities .* not logits"),
        (lambda x: x.reshape(2, 7), r"cannot read images \[3, 8, 8\]: RuntimeError"),
        (lambda x: x.layer4, r"cannot read images \[3, 8, 8\]: AttributeError: .* no attribute 'layer4'"),
        (lambda x: {"layer1": x}["layer4"], r"cannot read images \[3, 8, 8\]: KeyError: 'layer4'"),
        (lambda x: x.shape[1] // (x.shape[2] // 16), r"cannot read images \[3, 8, 8\]: ZeroDivisionError"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(read: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"model x .*{message}"):
        try_out(read, "model x", image_shape=(3, 8, 8), num_classes=4)


def test_logits_and_log_probabilities_pass_and_draw_nothing() -> None:
    state = torch.get_rng_state()
    try_out(logits, "model x", image_shape=(3, 8, 8), num_classes=4)
    # A softmax of logarithms of probabilities gives the probabilities.
    try_out(lambda x: logits(x).log_softmax(1), "model x", image_shape=(3, 8, 8), num_classes=4)
    assert torch.equal(torch.get_rng_state(), state)
