"""Checkpoints as people have them."""

import argparse
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.models.checkpoints import read_state_dict


@pytest.fixture
def weights(tiny_model: nn.Module) -> dict[str, Tensor]:
    return tiny_model.state_dict()


def prefixed(weights: dict[str, Tensor], prefix: str, scale: float = 1.0) -> dict[str, Tensor]:
    return OrderedDict((prefix + name, value * scale) for name, value in weights.items())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


WRAPPERS = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.", "net."]


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_wrappers_come_off(tmp_path: Path, weights: dict[str, Tensor], prefix: str, key: str | None) -> None:
    content = prefixed(weights, prefix)
    torch.save(content if key is None else {key: content, "epoch": 3}, tmp_path / "a.pth")
    assert_same(read_state_dict(str(tmp_path / "a.pth"), weights), weights)


def test_timm_checkpoint_saver_with_its_namespace(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    saved = {
        "epoch": 1,
        "arch": "vit",
        "state_dict": weights,
        "optimizer": {"param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, tags=["a"]),
        "state_dict_ema": prefixed(weights, "module.", 2.0),
    }
    torch.save(saved, tmp_path / "last.pth.tar")
    uri = str(tmp_path / "last.pth.tar")
    assert_same(read_state_dict(uri, weights), prefixed(weights, "", 2.0))
    assert_same(read_state_dict(uri, weights, use_ema=False), weights)


def test_lightning_with_an_averaged_copy(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    both = prefixed(weights, "model.") | prefixed(weights, "ema_model.module.", 2.0) | {"loss.weight": torch.ones(2)}
    torch.save(
        {"state_dict": both, "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 1}}, tmp_path / "a.ckpt"
    )
    assert_same(read_state_dict(str(tmp_path / "a.ckpt"), weights), prefixed(weights, "", 2.0))
    assert_same(read_state_dict(str(tmp_path / "a.ckpt"), weights, use_ema=False), weights)


def test_two_copies_are_not_guessed_between(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(prefixed(weights, "student.") | prefixed(weights, "teacher."), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"several copies.*student.*teacher"):
        read_state_dict(str(tmp_path / "a.pth"), weights)


def test_safetensors_from_any_file_system(weights: dict[str, Tensor]) -> None:
    with fsspec.open("memory://weights/a.safetensors", "wb") as file:
        file.write(safetensors.torch.save(prefixed(weights, "module.")))  # type: ignore[attr-defined]
    assert_same(read_state_dict("memory://weights/a.safetensors", weights), weights)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.target,))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "bad.pth")
    (tmp_path / "worse.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    told = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("bad.pth", "worse.pth", "module.pth"):
            with pytest.raises(CheckpointError) as refused:
                read_state_dict(str(tmp_path / name), ["a"])
            told[name] = str(refused.value).removeprefix(f"checkpoint {str(tmp_path / name)!r} ")
    # Not a word of torch's, which tells how to run what is in there; the way out runs it where the file is trusted.
    assert told["bad.pth"].startswith("holds more than weights (")
    assert "), and was not opened: if you trust the file, save its weights alone: python -c " in told["bad.pth"]
    assert told["worse.pth"].startswith("was pickled, but not by torch.save: if you trust the file, ")
    assert told["module.pth"].startswith("holds more than weights (torch.nn.modules.linear.Linear), and was not opened")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_corrupt_files_are_named(tmp_path: Path, weights: dict[str, Tensor], name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:  # cut off half-way
        torch.save(weights, path) if name.endswith(".pth") else safetensors.torch.save_file(weights, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_state_dict(str(path), weights)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        read_state_dict(str(tmp_path / "nowhere.pth"), ["a"])


def test_something_else_than_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no state dict: found a mapping with the keys"):
        read_state_dict(str(tmp_path / "a.pth"), ["a"])
