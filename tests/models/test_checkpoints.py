"""Checkpoints in the layouts that training code and libraries write."""

import argparse
import datetime
import gzip
import io
import json
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.models.checkpoints import find_weights_file, read_checkpoint, read_state_dict


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


def test_a_layer_that_a_wrapper_puts_beside_the_model_is_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """Its classifier follows the model's own; metrics and an averaged copy are no layers of it."""
    own = {"backbone." + name: value for name, value in weights.items()}
    averaged = {"ema." + name: value for name, value in weights.items()}
    others = {"accuracy.total": torch.zeros(3), "loss.weight": torch.ones(3)}
    torch.save({"state_dict": own | averaged | others}, tmp_path / "a.ckpt")
    assert read_checkpoint(str(tmp_path / "a.ckpt"), weights, use_ema=False)[1] == ()
    torch.save({"state_dict": own | others | {"fc.weight": torch.ones(5, 3)}}, tmp_path / "b.ckpt")
    found, (notice,) = read_checkpoint(str(tmp_path / "b.ckpt"), weights)
    assert_same(found, weights)
    assert "b.ckpt': layers beside the model are left out, fc.weight: where they follow it" in notice


def test_two_copies_are_not_guessed_between(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(prefixed(weights, "student.") | prefixed(weights, "teacher."), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"several sets of weights, under 'student\.', 'teacher\.'"):
        read_state_dict(str(tmp_path / "a.pth"), weights)


AVERAGED = ["ema", "model_ema", "ema_model", "modelEMA", "model_ema_state_dict", "swa_state_dict", "averaged_model"]


@pytest.mark.parametrize("plain", ["model", "state_dict", "net"])
@pytest.mark.parametrize("averaged", AVERAGED)
@pytest.mark.parametrize("inner", [None, "module", "state_dict"])
def test_averaged_weights_are_known_by_their_key(
    tmp_path: Path, weights: dict[str, Tensor], plain: str, averaged: str, inner: str | None
) -> None:
    ema = prefixed(weights, "module.", 2.0)
    optimizer = {"exp_avg": dict(weights), "ema": dict(weights)}
    saved = {plain: weights, averaged: {inner: ema, "decay": 0.99} if inner else ema, "optimizer": optimizer}
    for order in (saved, dict(reversed(saved.items()))):
        torch.save(order, tmp_path / "a.pth")
        assert_same(read_state_dict(str(tmp_path / "a.pth"), weights), prefixed(weights, "", 2.0))
        assert_same(read_state_dict(str(tmp_path / "a.pth"), weights, use_ema=False), weights)


@pytest.mark.parametrize(
    ("keys", "use_ema", "found"),
    [
        (("state_dict", "model"), True, "'model', 'state_dict'"),
        (("state_dict", "best_state_dict"), True, "'best_state_dict', 'state_dict'"),
        (("state_dict", "teacher"), False, "'state_dict', 'teacher'"),
        (("model", "teacher", "ema"), False, "'model', 'teacher'"),
        (("model", "model_ema", "swa_state_dict"), True, "'model_ema', 'swa_state_dict'"),
        (("ema", "swa"), False, "'ema', 'swa'"),
    ],
)
def test_several_sets_of_a_kind_are_refused(
    tmp_path: Path, weights: dict[str, Tensor], keys: tuple[str, ...], use_ema: bool, found: str
) -> None:
    torch.save({key: prefixed(weights, "", place + 1.0) for place, key in enumerate(keys)}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=f"several sets of weights, under {found}: save one.*use_ema chooses only"
    ):
        read_state_dict(str(tmp_path / "a.pth"), weights, use_ema=use_ema)


def test_sets_of_another_layout_are_reported_apart_as_well(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    first = {name.replace("blocks", "layers"): value for name, value in weights.items()}
    second = {name: 2 * value for name, value in first.items()}
    torch.save({"model": first, "ema": second}, tmp_path / "a.pth")
    assert_same(read_state_dict(str(tmp_path / "a.pth"), weights), second)
    torch.save({"model": first, "teacher": second}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="several sets of weights, under 'model', 'teacher'"):
        read_state_dict(str(tmp_path / "b.pth"), weights)


def test_a_set_at_the_top_beside_a_nested_one(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({**weights, "ema": prefixed(weights, "", 2.0)}, tmp_path / "a.pth")
    assert_same(read_state_dict(str(tmp_path / "a.pth"), weights), prefixed(weights, "", 2.0))
    assert_same(read_state_dict(str(tmp_path / "a.pth"), weights, use_ema=False), weights)
    torch.save({**weights, "best": prefixed(weights, "", 2.0)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="several sets of weights, under its top, 'best'"):
        read_state_dict(str(tmp_path / "b.pth"), weights)


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
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("bad.pth", "worse.pth", "module.pth"):
            with pytest.raises(CheckpointError) as refused:
                read_state_dict(str(tmp_path / name), ["a"])
            found[name] = str(refused.value).removeprefix(f"checkpoint {str(tmp_path / name)!r} ")
    # Not a word of torch's, which tells how to run what is in there; the way out runs it where the file is trusted.
    assert found["bad.pth"].startswith("holds more than weights (")
    assert "), and was not opened: if you trust the file, save its weights alone: python -c " in found["bad.pth"]
    assert found["worse.pth"].startswith("was pickled, but not by torch.save: if you trust the file, ")
    assert found["module.pth"].startswith(
        "holds more than weights (torch.nn.modules.linear.Linear), and was not opened"
    )
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


def test_what_training_code_saves_beside_the_weights_is_data(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    beside = {
        "best_acc": np.float64(0.9),
        "epoch": np.int64(3),
        "done": np.bool_(True),
        "note": np.str_("a"),
        "when": np.datetime64("2026-01-01"),
        "curve": np.arange(6.0).reshape(2, 3),
        "objects": np.array([None, {}], dtype=object),
        "rng": np.random.default_rng(0).bit_generator.state,
        "path": Path("/a/b"),
        "saved": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "logs": defaultdict(list, {"loss": [1.0]}),
        "last": deque([1, 2], maxlen=3),
        "args": argparse.Namespace(out=Path("x")),
        "device": torch.device("cpu"),
    }
    torch.save({"model": weights, **beside}, tmp_path / "a.pth")
    assert_same(read_state_dict(str(tmp_path / "a.pth"), weights), weights)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_old_and_new_numpy(tmp_path: Path, weights: dict[str, Tensor], module: str) -> None:
    torch.save({"model": weights, "best": np.float64(0.9)}, tmp_path / "a.pth")
    renamed = (tmp_path / "b.pth", module.encode())
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(renamed[0], "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = re.sub(rb"numpy\._?core\.multiarray", renamed[1], content)
                assert renamed[1] + b"\n" in content
            new.writestr(name, content)
    assert_same(read_state_dict(str(renamed[0]), weights), weights)


@pytest.mark.parametrize("dtype", [">f4", "<f4", "<f8"])
def test_weights_as_numpy_arrays(tmp_path: Path, weights: dict[str, Tensor], dtype: str) -> None:
    torch.save({name: value.numpy().astype(dtype) for name, value in weights.items()}, tmp_path / "a.pth")
    found = read_state_dict(str(tmp_path / "a.pth"), weights)
    assert_same({name: value.float() for name, value in found.items()}, weights)


def test_an_array_whose_type_lies_is_not_read_as_pointers(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    class Lie:
        def __reduce__(self) -> tuple[Any, ...]:
            # An array of objects, with bytes where the objects should be.
            return (_reconstruct, (np.ndarray, (0,), b"b"), (1, (2,), np.dtype("O"), False, b"\xff" * 16))

    torch.save({"model": weights, "lie": Lie()}, tmp_path / "a.pth")
    assert_same(read_state_dict(str(tmp_path / "a.pth"), weights), weights)


@pytest.mark.parametrize("key", ["module", "net", "weights"])
def test_the_one_mapping_that_holds_the_model_is_found(tmp_path: Path, weights: dict[str, Tensor], key: str) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}
    torch.save({key: prefixed(weights, "module."), "optimizer": optimizer, "acc": 1.0}, tmp_path / "a.pth")
    assert_same(read_state_dict(str(tmp_path / "a.pth"), weights), weights)
    torch.save({key: weights, "teacher": weights}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"holds several sets of weights, under .*'teacher'"):
        read_state_dict(str(tmp_path / "b.pth"), weights)


def test_a_file_is_what_its_content_says(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(weights, tmp_path / "a.pth")
    torch.save(weights, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: value.numpy() for name, value in weights.items()})  # type: ignore[arg-type]
    for name in ("a.pth", "a.safetensors", "a.npz"):
        assert_same(read_state_dict(str(tmp_path / name), weights), weights)


def test_a_sharded_checkpoint_is_read_by_its_index(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    names = sorted(weights)
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        safetensors.torch.save_file({n: weights[n] for n in names if places[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(read_state_dict(str(index), weights), weights)
    assert find_weights_file(str(tmp_path)) == str(index)
    with pytest.raises(
        CheckpointError, match=r"is part 1 of 2 parts of the weights: give the index, model\.safetensors"
    ):
        read_state_dict(str(tmp_path / "model-00001-of-00002.safetensors"), weights)
    index.write_text(json.dumps({"weight_map": {**places, "head.more": places[names[0]]}}))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors that its index names, as 'head\.more'"):
        read_state_dict(str(index), weights)
    index.write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        read_state_dict(str(index), weights)


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/").replace("_", "."), content)
    return buffer.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty.pth": (b"", "is empty$"),
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
    "page.pth": (b"\n<!DOCTYPE html><html></html>", "a web page"),
    "page.onnx": (b"<html></html>", "a web page"),
    "text.safetensors": (b"404: not found\n", r"is text, not a checkpoint \('404: not found'\)"),
    "other.json": (b'{"a": 1}', "is JSON, not a checkpoint"),
    "a.pth.gz": (gzip.compress(b"x"), "compressed with gzip: unpack it"),
    "a.tar": (b"weights".ljust(257, b"\0") + b"ustar".ljust(300, b"\0"), "a tar archive: unpack it"),
    "a.zip": (archive(weights_pth=b"x"), r"a zip archive of 1 files \(weights\.pth\): unpack it"),
    "script.pt": (archive(a__data_pkl=b"", a__constants_pkl=b""), "a TorchScript archive.*torch.jit.load"),
    "a.pt2": (archive(a__archive_format=b"pt2").replace(b"archive.format", b"archive_format"), "an exported program"),
    "a.keras": (archive(model_weights_h5=b""), "a Keras model"),
    "a.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "a.onnx": (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
    "onnx.pth": (b"\x08\x08\x12\x07pytorch\xff", "an ONNX model"),
    "a.msgpack": (b"\x81\xa6params\x80", "a Flax checkpoint"),
    "flax.bin": (b"\x81\xa6params\x80\xff", "a Flax checkpoint"),
    "a.gguf": (b"GGUF\0\0", "a GGUF file"),
    "model.ckpt-7.data-00000-of-00001": (b"\0\1\xff", "a part of a TensorFlow checkpoint"),
    "noise.pth": (b"\xa5\x5a" * 50, "is not a checkpoint, or corrupt"),
    "pickled.pkl": (
        pickle.dumps({"a": 1}),
        "was pickled, but not by torch.save: if you trust the file, save its weights",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_kinds_are_named(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as refused:
        read_state_dict(str(tmp_path / name), ["a"])
    assert str(refused.value).startswith(f"checkpoint {str(tmp_path / name)!r} ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("__0_0.distcp", "a distributed checkpoint .*dcp_to_torch"),
        ("zero_to_fp32.py", "a DeepSpeed checkpoint"),
        ("saved_model.pb", "a TensorFlow SavedModel"),
        ("model.safetensors", r"give the file of weights in it \(model\.safetensors\)"),
    ],
)
def test_folders_are_named_by_what_lies_in_them(tmp_path: Path, inside: str, message: str) -> None:
    (tmp_path / inside).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"is a folder: {message}"):
        read_state_dict(str(tmp_path), ["a"])


def test_the_way_out_that_is_reported_works(tmp_path: Path, tiny_model: nn.Module) -> None:
    torch.save({"model": tiny_model, "epoch": 3}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="and was not opened: if you trust the file") as refused:
        read_state_dict(str(tmp_path / "whole.pth"), tiny_model.state_dict())
    command = str(refused.value).partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-W", "ignore", "-c", command], cwd=tmp_path, check=True)
    assert_same(read_state_dict(str(tmp_path / "weights.pth"), tiny_model.state_dict()), tiny_model.state_dict())


@pytest.mark.parametrize(
    "name",
    ["base_model.model.blocks.0.attn.qkv.lora_A.default.weight", "blocks.0.attn.qkv.base_layer.weight", "lora_A"],
)
@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_refused_with_the_way_to_merge_it(
    tmp_path: Path, weights: dict[str, Tensor], name: str, beside: bool
) -> None:
    safetensors.torch.save_file({**(weights if beside else {}), name: torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(str(tmp_path / "a.safetensors"), weights)
    assert f"holds an adapter of PEFT, '{name}': merge it first (model = model.merge_and_unload())" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_model_with_names_like_an_adapters_is_none(tmp_path: Path, prefix: str) -> None:
    with torch.device("meta"):
        names = timm.create_model("dla46_c").state_dict().keys()
    assert any(name.startswith("base_layer.") for name in names)
    weights = {name: torch.ones(2) for name in names}
    torch.save({"state_dict": prefixed(weights, prefix)}, tmp_path / "dla.pth")
    assert_same(read_state_dict(str(tmp_path / "dla.pth"), names), weights)


def test_an_adapter_in_a_model_with_names_like_its_own_is_refused(tmp_path: Path) -> None:
    keys = ["base_layer.0.weight", "fc.weight"]
    held = dict.fromkeys(["base_layer.0.base_layer.weight", "fc.weight"], torch.ones(2))
    torch.save(held, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"an adapter of PEFT, 'base_layer\.0\.base_layer\.weight'"):
        read_state_dict(str(tmp_path / "a.pth"), keys)


def test_beside_the_prompt_encoder_of_sam_lies_no_adapter(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    held = {**prefixed(weights, "image_encoder."), "prompt_encoder.no_mask_embed.weight": torch.ones(2)}
    torch.save(held, tmp_path / "sam.pth")
    assert_same(read_state_dict(str(tmp_path / "sam.pth"), weights), weights)


def test_a_folder_of_checkpoints_is_named_with_what_lies_in_it(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    for name in ("checkpoint-500", "checkpoint-1000"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        CheckpointError, match=r"is a folder: give .* one of those in it \(checkpoint-1000, checkpoint-5"
    ):
        read_state_dict(str(tmp_path), weights)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is a folder: an adapter of PEFT; merge it first"):
        read_state_dict(str(tmp_path), weights)
