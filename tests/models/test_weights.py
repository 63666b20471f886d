"""Weights must be floating-point tensors that fit the model; quantized and sparse ones are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from pipeline.errors import CheckpointError
from pipeline.models import ModelConfig, load_model, save_model
from pipeline.models.weights import check_floating
from tests.conftest import HALF, TINY, make_tiny_model
from tests.models.test_loading import jax_layout

Weights = dict[str, Tensor]


def load(path: Path) -> nn.Module:
    return load_model(ModelConfig(name="vit_tiny_patch16_224", checkpoint=str(path), model_args=TINY)).model


def every(change: Callable[[Tensor], Any]) -> Callable[[Weights], dict[str, Any]]:
    return lambda weights: {name: change(value) for name, value in weights.items()}


def one(change: Callable[[Tensor], Any]) -> Callable[[Weights], dict[str, Any]]:
    return lambda weights: {**weights, "head.weight": change(weights["head.weight"])}


UNUSUAL: dict[str, tuple[Callable[[Weights], dict[str, Any]], str]] = {
    "int8": (every(lambda v: (v * 100).to(torch.int8)), "'cls_token' is int8, as .* dequantize it first"),
    "uint8": (every(lambda v: (v * 100).to(torch.uint8)), "is uint8, as quantized weights are: dequantize it first"),
    "int64": (every(lambda v: (v * 100).long()), "is int64, as quantized weights are: dequantize it first"),
    "one of them": (one(lambda v: (v * 100).to(torch.int8)), "'head.weight' is int8"),
    "float8": (one(lambda v: v.to(torch.float8_e4m3fn)), "'head.weight' is float8_e4m3fn"),
    "bool": (one(lambda v: v > 0), "'head.weight' is bool, not floating numbers"),
    "complex": (one(lambda v: v.to(torch.complex64)), "'head.weight' is complex64, not floating numbers"),
    "numpy": (one(lambda v: (v * 100).numpy().astype(np.int16)), "'head.weight' is int16"),
    "quantized": (
        one(lambda v: torch.quantize_per_tensor(v, 0.01, 0, torch.qint8)),
        r"'head.weight' is quantized \(qint8\): dequantize it first",
    ),
    "sparse": (one(Tensor.to_sparse), r"'head.weight' is sparse \(sparse_coo\): make it dense first"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.filterwarnings("ignore")
def test_what_only_stands_for_weights_is_refused(tmp_path: Path, tiny_model: nn.Module, kind: str) -> None:
    change, message = UNUSUAL[kind]
    torch.save(change(tiny_model.state_dict()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth': {message}|a\.pth': .* {message}"):
        load(tmp_path / "a.pth")


def test_torchaos_tensors_are_refused(tmp_path: Path) -> None:
    model = make_tiny_model()
    quantize_(model, Int8WeightOnlyConfig())
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"is quantized \(Int8Tensor\): dequantize it first"):
        load(tmp_path / "a.pth")


def test_integers_are_refused_in_every_container(tmp_path: Path, tiny_model: nn.Module) -> None:
    integers = {name: (100 * value).to(torch.int8) for name, value in tiny_model.state_dict().items()}
    safetensors.torch.save_file(integers, tmp_path / "a.safetensors")
    arrays = {name: value.numpy() for name, value in integers.items()}
    np.savez(tmp_path / "a.npz", **arrays)  # pyright: ignore[reportArgumentType]
    np.savez(tmp_path / "jax.npz", **jax_layout(integers))  # pyright: ignore[reportArgumentType]
    for name in ("a.safetensors", "a.npz", "jax.npz"):
        with pytest.raises(CheckpointError, match="is int8"):
            load(tmp_path / name)
    folder = tmp_path / "m"
    save_model(tiny_model, folder, class_names=list("abcdefghij"), mean=HALF, std=HALF)
    safetensors.torch.save_file(integers, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is int8"):
        load_model(ModelConfig(name=f"local-dir:{folder}"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_numbers_of_any_width_are_weights(tmp_path: Path, tiny_model: nn.Module, dtype: torch.dtype) -> None:
    torch.save({name: value.to(dtype) for name, value in tiny_model.state_dict().items()}, tmp_path / "a.pth")
    expected = tiny_model.head.weight.to(dtype).float()  # type: ignore[union-attr]
    assert torch.equal(load(tmp_path / "a.pth").head.weight, expected)  # type: ignore[arg-type]


def test_buffers_of_integers_stay_integers() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    assert not model.state_dict()["bn1.num_batches_tracked"].is_floating_point()
    check_floating("a.pth", model.state_dict(), model)
    # Of another layout, which timm's own filter for the family may know.
    check_floating("a.pth", {"embeddings.position_ids": torch.arange(3)}, model)
    with pytest.raises(CheckpointError, match="is int8"):
        check_floating("a.pth", {"visual.proj": torch.zeros(3, dtype=torch.int8)}, model)
