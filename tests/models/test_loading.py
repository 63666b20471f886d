import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import timm.data
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.models import LoadedModel, ModelConfig, RealImageTransform, load_model, save_model, weight_digest
from pipeline.models.hub import quiet_attempts
from tests.conftest import HALF, TINY, make_tiny_model

SIZES: dict[str, Any] = {name: value for name, value in TINY.items() if name != "num_classes"}


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: nn.Module) -> Path:
    torch.save(tiny_model.state_dict(), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def config(checkpoint: Path, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "name": "vit_tiny_patch16_224",
        "checkpoint": str(checkpoint),
        "num_classes": 10,
        "model_args": SIZES,
    }
    return ModelConfig(**{**values, **changes})


def test_from_a_checkpoint(checkpoint: Path, tiny_model: nn.Module) -> None:
    loaded = load_model(config(checkpoint))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.model(images), tiny_model(images))
    assert loaded.digest == weight_digest(tiny_model)
    assert loaded.input_size == (3, 32, 32)
    assert (loaded.mean, loaded.std) == (HALF, HALF)
    assert loaded.class_names == [str(i) for i in range(10)]
    assert not loaded.model.training


def test_the_default_dtype_of_the_caller_changes_no_model(checkpoint: Path) -> None:
    loaded = load_model(config(checkpoint))
    torch.set_default_dtype(torch.float64)
    try:
        again = load_model(config(checkpoint))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in again.model.parameters()} == {torch.float32}
    assert again.digest == loaded.digest


def test_from_a_folder(tiny_folder: Path, tiny_model: nn.Module) -> None:
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    assert loaded.digest == weight_digest(tiny_model)
    assert loaded.class_names[:2] == ["class a", "class b"]
    assert loaded.input_size == (3, 32, 32)


def test_who_may_read_a_saved_config_may_read_the_weights(tmp_path: Path) -> None:
    """safetensors wrote them for their owner alone, and workers of a cluster may be another user."""
    save_model(make_tiny_model(), tmp_path, class_names=list("abcdefghij"), mean=HALF, std=HALF)
    config, weights = (tmp_path / name for name in ("config.json", "model.safetensors"))
    assert weights.stat().st_mode == config.stat().st_mode


def test_a_saved_folder_is_timms_own(tmp_path: Path) -> None:
    model = make_tiny_model(in_chans=1)
    save_model(model, tmp_path / "m", class_names=list("0123456789"), mean=(0.2,), std=(0.3,))
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    images = torch.randn(1, 1, 32, 32)
    assert torch.equal(again(images), model(images))
    loaded = load_model(ModelConfig(name=f"local-dir:{tmp_path / 'm'}"))
    assert (loaded.mean, loaded.std, loaded.input_size) == ((0.2,), (0.3,), (1, 32, 32))


def test_an_unknown_model() -> None:
    with pytest.raises(ModelError, match="vit_tiny_patch17_999"):
        load_model(ModelConfig(name="vit_tiny_patch17_999", pretrained=True))


def test_an_argument_the_family_does_not_take(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="wings"):
        load_model(config(checkpoint, model_args={"wings": 2}))


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="/nowhere/deit_tiny"):
        load_model(ModelConfig(name="local-dir:/nowhere/deit_tiny"))


@pytest.mark.parametrize("asked", [{}, {"pretrained": True}, {"checkpoint": "/nowhere.pth"}])
def test_a_misspelled_name_is_called_unknown_and_the_most_similar_one_is_named(asked: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"has no model 'deit_tinny_.*': did you mean 'deit_tiny_patch16_224'\?"):
        load_model(ModelConfig(name="deit_tinny_patch16_224", **asked))
    with pytest.raises(ModelError, match=r"has no model 'zzz': `timm\.list_models\(\)` lists the names"):
        load_model(ModelConfig(name="zzz", **asked))


def test_without_network_one_line_replaces_each_attempt_and_the_error_names_a_way_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, printed = logging.getLogger("huggingface_hub.utils._http"), io.StringIO()
    handler = logging.StreamHandler(printed)
    client.addHandler(handler)
    with quiet_attempts("deit"):
        for _ in range(2):
            client.warning("'no route' thrown while requesting HEAD https://huggingface.co/x")
            client.warning("Retrying in 8s [Retry 5/5].")
    client.removeHandler(handler)
    assert printed.getvalue() == "the weights of 'deit' cannot be downloaded yet, trying for a minute\n"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"without network, give checkpoint, .* or local-dir:FOLDER as name$"):
        load_model(ModelConfig(name="vit_tiny_patch16_224", pretrained=True))


def test_a_teacher_needs_weights(tiny_model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no trained weights"):
        load_model(ModelConfig(name="vit_tiny_patch16_224"))
    loaded = load_model(ModelConfig(name="vit_tiny_patch16_224", num_classes=10, model_args=SIZES), trained=False)
    assert loaded.model.num_classes == 10


@pytest.mark.parametrize("num_classes", [7, 1000])
def test_another_class_count_than_the_checkpoint(checkpoint: Path, num_classes: int) -> None:
    with pytest.raises(CheckpointError, match=f"10 classes, the model has {num_classes}: set num_classes to 10"):
        load_model(config(checkpoint, num_classes=num_classes))


def test_another_class_count_than_the_folder(tiny_folder: Path) -> None:
    name = f"local-dir:{tiny_folder}"
    with pytest.raises(ModelError, match="trained for 10 classes, num_classes says 7"):
        load_model(ModelConfig(name=name, num_classes=7))
    assert load_model(ModelConfig(name=name, num_classes=7), trained=False).model.num_classes == 7


def test_a_checkpoint_of_another_model(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError) as deeper:
        load_model(config(checkpoint, model_args={**SIZES, "depth": 3}))
    assert str(deeper.value) == (
        f"checkpoint {str(checkpoint)!r} does not fit model 'vit_tiny_patch16_224': "
        "12 missing tensors (blocks.2.norm1.weight, blocks.2.norm1.bias, blocks.2.attn.qkv.weight, ...)"
    )
    with pytest.raises(CheckpointError) as wider:
        load_model(config(checkpoint, model_args={**SIZES, "depth": 1, "embed_dim": 48}))
    assert "12 unexpected tensors (blocks.1.norm1.weight, " in str(wider.value)
    assert "tensors of other shapes (cls_token is [1, 1, 32], not [1, 1, 48], " in str(wider.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {**SIZES, "patch_size": 16}}, "on 8x8 pixels of 3 channels, the model reads 16x16 pixels of 3"),
        ({"in_chans": 1}, "on 8x8 pixels of 3 channels, the model reads 8x8 pixels of 1 channel$"),
    ],
)
@pytest.mark.parametrize("trained", [True, False])
def test_a_checkpoint_of_other_patches_or_channels(
    checkpoint: Path, changes: dict[str, Any], message: str, trained: bool
) -> None:
    with pytest.raises(CheckpointError, match=rf"teacher\.pth' was trained {message}"):
        load_model(config(checkpoint, **changes), trained=trained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {"patch_size": 4}}, "on 8x8 pixels of 3 channels, the model reads 4x4 pixels of 3 channels"),
        ({"in_chans": 1}, "on 8x8 pixels of 3 channels, the model reads 8x8 pixels of 1 channel$"),
    ],
)
def test_a_folder_of_other_patches_or_channels(tiny_folder: Path, changes: dict[str, Any], message: str) -> None:
    asked = ModelConfig(name=f"local-dir:{tiny_folder}", **changes)
    with pytest.raises(CheckpointError, match=f"was trained {message}"):
        load_model(asked)
    # What is to be trained anyway may start from there.
    assert load_model(asked, trained=False).class_names[0] == "class a"


def test_an_image_size_that_is_asked_for_is_resampled_and_said(checkpoint: Path, tiny_folder: Path) -> None:
    for loaded in (
        load_model(config(checkpoint, model_args={**SIZES, "img_size": 48})),
        load_model(ModelConfig(name=f"local-dir:{tiny_folder}", model_args={"img_size": 48})),
    ):
        assert loaded.input_size == (3, 48, 48)
        (notice,) = others(loaded)
        assert "was trained on 32x32 pixels, the model reads 48x48 pixels: timm resampled it" in notice
    assert others(load_model(config(checkpoint))) == []
    assert load_model(ModelConfig(name=f"local-dir:{tiny_folder}", model_args={"img_size": 32})).notices == ()


def test_weights_of_another_image_size_are_not_resampled_unasked(tmp_path: Path, tiny_folder: Path) -> None:
    larger = make_tiny_model(img_size=48).state_dict()
    torch.save(larger, tmp_path / "48.pth")
    # The folder states 32 pixels, and its weights are of 48.
    lying = tmp_path / "lying"
    shutil.copytree(tiny_folder, lying)
    safetensors.torch.save_file(larger, lying / "model.safetensors")
    named = ModelConfig(name=f"local-dir:{tiny_folder}", checkpoint=str(tmp_path / "48.pth"))
    for asked in (named, ModelConfig(name=f"local-dir:{lying}")):
        with pytest.raises(
            CheckpointError, match=r"on 48x48 pixels, the model reads 32x32 .* set model_args\.img_size"
        ):
            load_model(asked)
        # What is to be trained anyway may start from there.
        assert "was trained on 48x48 pixels" in load_model(asked, trained=False).notices[0]


RESAMPLED: dict[str, tuple[dict[str, Any], int, str]] = {
    "swinv2_cr_tiny_224": ({"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}, 96, ""),
    "beit_base_patch16_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 96, "relative_position_bias_table"),
    "vit_relpos_small_patch16_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 96, ""),
    "eva02_tiny_patch14_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 56, "56x56 pixels"),
    "vit_small_patch16_rope_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 96, ""),
    "deit_tiny_distilled_patch16_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 96, "96x96 pixels"),
}


@pytest.mark.parametrize("name", RESAMPLED)
def test_no_family_reads_another_image_size_without_a_word(tmp_path: Path, name: str) -> None:
    sizes, trained, reported = RESAMPLED[name]
    asked = {**sizes, "img_size": 2 * trained}
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=trained, num_classes=3, **sizes)
    save_model(model, tmp_path / "m", class_names=list("abc"), mean=HALF, std=HALF)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    as_folder = ModelConfig(name=f"local-dir:{tmp_path / 'm'}", model_args={"img_size": 2 * trained})
    as_checkpoint = ModelConfig(name=name, checkpoint=str(tmp_path / "a.pth"), num_classes=3, model_args=asked)
    for loaded in (load_model(as_folder), load_model(as_checkpoint)):
        (notice,) = others(loaded)
        assert reported in notice
        assert f"the model reads {2 * trained}x{2 * trained}" in notice
    same = ModelConfig(name=f"local-dir:{tmp_path / 'm'}")
    assert load_model(same).notices == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, tiny_model: nn.Module, value: float) -> None:
    with torch.no_grad():
        tiny_model.get_parameter("blocks.1.mlp.fc1.weight")[3, 4] = value
    torch.save(tiny_model.state_dict(), tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth' are not finite: 'blocks\.1\.mlp\.fc1\.weight'"):
        load_model(config(tmp_path / "bad.pth"))


def test_class_names_from_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij") + "\n")
    assert load_model(config(checkpoint, class_names=str(tmp_path / "names.txt"))).class_names == list("abcdefghij")
    (tmp_path / "names.json").write_text('["a", "b"]')
    with pytest.raises(ConfigError, match=r"2 names.*10 classes"):
        load_model(config(checkpoint, class_names=str(tmp_path / "names.json")))
    with pytest.raises(ConfigError, match="repeated: "):
        load_model(config(checkpoint, class_names=["a"] * 10))
    with pytest.raises(ConfigError, match=r"absent\.txt"):
        load_model(config(checkpoint, class_names=str(tmp_path / "absent.txt")))


def test_imagenet_names_are_timms_and_all_different(tmp_path: Path) -> None:
    model = make_tiny_model(num_classes=1000)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = load_model(config(tmp_path / "a.pth", num_classes=1000))
    assert loaded.class_names[0] == "tench, Tinca tinca"
    assert len(set(loaded.class_names)) == 1000
    (notice,) = others(loaded)
    assert "has 1000 classes without names: ImageNet's names, in ImageNet's order, are used" in notice
    given = [f"own {number}" for number in range(1000)]
    assert others(load_model(config(tmp_path / "a.pth", num_classes=1000, class_names=given))) == []
    save_model(model, tmp_path / "named", class_names=given, mean=HALF, std=HALF)
    assert load_model(ModelConfig(name=f"local-dir:{tmp_path / 'named'}")).notices == ()


def others(loaded: LoadedModel) -> list[str]:
    """Return the notices about anything but preprocessing that a file of weights does not state."""
    return [notice for notice in loaded.notices if "states no preprocessing" not in notice]


def test_own_weights_are_shown_images_as_timm_does_and_a_notice_says_how(checkpoint: Path, tiny_folder: Path) -> None:
    (notice,) = load_model(config(checkpoint)).notices
    taken = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.9}
    shown = ", ".join(f"{name} {value}" for name, value in {**taken, "crop_mode": "center"}.items())
    assert notice == (
        f"checkpoint {str(checkpoint)!r} states no preprocessing: that of timm's 'vit_tiny_patch16_224' is taken, "
        f"{shown}; where it was trained with another, set these beside checkpoint"
    )
    loaded = load_model(config(checkpoint))
    assert {name: list(v) if isinstance(v := loaded.data_config[name], tuple) else v for name in taken} == taken
    # Of what is set nothing need be said.
    (notice,) = load_model(config(checkpoint, mean=[0.1, 0.2, 0.3], interpolation="bilinear")).notices
    assert "is taken, std [0.5, 0.5, 0.5], crop_pct 0.9, crop_mode center; where" in notice
    assert load_model(config(checkpoint, **taken, crop_mode="squash")).notices == ()
    # A folder states its own.
    in_folder = ModelConfig(name=f"local-dir:{tiny_folder}", checkpoint=str(checkpoint))
    assert load_model(in_folder).notices == ()


def test_normalization_must_fit_the_channels(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="mean has 1 values, the model reads 3 channels"):
        load_model(config(checkpoint, mean=[0.5]))
    assert load_model(config(checkpoint, mean=[0.1, 0.2, 0.3])).mean == (0.1, 0.2, 0.3)


def test_a_mean_of_255_levels_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"mean must be of pixels in \[0, 1\], not \[123.7, 116.3, 103.5\]"):
        load_model(config(checkpoint, mean=[123.7, 116.3, 103.5]))


STD_OF_255 = r"std must be above 0 and at most 1, as of pixels in \[0, 1\], not \[.*\]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.0] * 3, "std": [255.0] * 3}, rf"^{STD_OF_255}: divide by 255 if it is of pixels in"),
        ({"std": [58.4, 57.1, 57.4]}, f"^{STD_OF_255}: divide by 255"),
        ({"std": [0.5, 0.0, 0.5]}, f"^{STD_OF_255}$"),
        ({"std": [-0.5] * 3}, f"^{STD_OF_255}$"),
        ({"mean": [-1.0] * 3}, r"^mean must be of pixels in \[0, 1\], not \[-1.0, -1.0, -1.0\]$"),
        ({"mean": []}, "^mean must be numbers, one per channel"),
    ],
)
def test_normalization_is_of_pixels_from_0_to_1(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(config(checkpoint, **changes))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0,) * 3, (1.0,) * 3),
        (HALF, HALF),
        ((0.0,) * 3, (1 / 255,) * 3),
        ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
    ],
)
def test_normalizations_as_people_have_them(checkpoint: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    loaded = load_model(config(checkpoint, mean=list(mean), std=list(std)))
    assert (loaded.mean, loaded.std) == (mean, std)


OWN: dict[str, tuple[Any, str]] = {
    "interpolation": ("bogus", "interpolation must be one of nearest, .*, not 'bogus'"),
    "crop_pct": (87.5, "crop_pct must be above 0 and at most 2, a share and no percentage, not 87.5"),
    "crop_mode": ("corner", "crop_mode must be one of center, squash, border, not 'corner'"),
    "mean": ([123.7, 116.3, 103.5], r"mean must be of pixels in \[0, 1\].*divide by 255"),
    "std": ([0, 0.5, 0.5], STD_OF_255),
}


@pytest.mark.parametrize("name", OWN)
def test_what_a_folder_says_of_real_images_is_checked(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    value, message = OWN[name]
    folder = edit_own_config(tiny_folder, tmp_path / "m", **{name: value})
    with pytest.raises(ConfigError, match=f"^model 'local-dir:.*: its own {message}.*; (set|use) .* to override it"):
        load_model(ModelConfig(name=folder))
    good: dict[str, Any] = {
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": HALF,
        "std": HALF,
    }
    given = list(good[name]) if name in ("mean", "std") else good[name]
    changes: dict[str, Any] = {name: given}
    loaded = load_model(ModelConfig(name=folder, **changes))
    assert loaded.data_config[name] == good[name]


@pytest.mark.parametrize(("name", "value"), [("mean", "0.5"), ("std", [0.5, None, 0.5])])
def test_what_is_of_another_type_is_one_line(tmp_path: Path, tiny_folder: Path, name: str, value: Any) -> None:
    with pytest.raises((ConfigError, ModelError), match=f"{name} must be"):
        load_model(ModelConfig(name=edit_own_config(tiny_folder, tmp_path / "m", **{name: value})))


def edit_own_config(source: Path, folder: Path, **changes: Any) -> str:
    """Copy a folder with other values in its `pretrained_cfg`; returns the name to load it by."""
    shutil.copytree(source, folder)
    stated = json.loads((folder / "config.json").read_text())
    stated["pretrained_cfg"] |= changes
    (folder / "config.json").write_text(json.dumps(stated))
    return f"local-dir:{folder}"


def test_how_real_images_are_cropped_can_be_set(tiny_folder: Path) -> None:
    picture = Image.fromarray(np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)).convert("RGB")
    name = f"local-dir:{tiny_folder}"
    plain = RealImageTransform(load_model(ModelConfig(name=name)))(picture)
    settings: list[dict[str, Any]] = [{"crop_pct": 0.5}, {"interpolation": "nearest"}, {"crop_mode": "squash"}]
    for changes in settings:
        loaded = load_model(ModelConfig(name=name, **changes))
        given = {"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center", **changes}
        wanted = timm.data.create_transform(**{**loaded.data_config, **given}, is_training=False)
        assert torch.equal(RealImageTransform(loaded)(picture), wanted(picture))  # type: ignore[operator]
        assert not torch.equal(RealImageTransform(loaded)(picture), plain)


def test_own_class_names_that_do_not_fit_are_not_replaced_by_numbers(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    stated = json.loads((folder / "config.json").read_text())
    for names, message in (
        (list("abcdefghi"), "10 classes and 9 label_names of its own: give class_names"),
        ({"a": 0, "b": 2}, "its own label_names does not number its 2 classes"),
    ):
        (folder / "config.json").write_text(json.dumps({**stated, "label_names": names}))
        with pytest.raises(ConfigError, match=message):
            load_model(ModelConfig(name=f"local-dir:{folder}"))
    (folder / "config.json").write_text(
        json.dumps({**stated, "label_names": {c: i for i, c in enumerate("abcdefghij")}})
    )
    assert load_model(ModelConfig(name=f"local-dir:{folder}")).class_names == list("abcdefghij")


def test_names_in_a_folder_as_transformers_writes_them(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    own = json.loads((folder / "config.json").read_text())
    own_names = own.pop("label_names")
    letters, filled_in = list("abcdefghij"), [f"LABEL_{number}" for number in range(10)]

    def names(**stated: Any) -> list[str]:
        (folder / "config.json").write_text(json.dumps({**own, **stated}))
        return load_model(ModelConfig(name=f"local-dir:{folder}")).class_names

    assert names(id2label=dict(enumerate(letters))) == letters
    assert names(label2id={name: number for number, name in enumerate(letters)}) == letters
    assert names(label_names=own_names, id2label=dict(enumerate(filled_in))) == own_names
    assert names(id2label=dict(enumerate(filled_in))) == [str(number) for number in range(10)]
    with pytest.raises(ConfigError, match="has other names in label_names than in id2label"):
        names(label_names=own_names, id2label=dict(enumerate(letters)))
    with pytest.raises(ConfigError, match="10 classes and 2 class names of its own: give class_names"):
        names(id2label={0: "a", 1: "b"})


def test_googles_npz_files_through_timms_own_reader(tmp_path: Path, tiny_model: nn.Module) -> None:
    arrays = jax_layout(tiny_model.state_dict())
    np.savez(tmp_path / "a.npz", **arrays)  # pyright: ignore[reportArgumentType]
    loaded = load_model(config(tmp_path / "a.npz"))
    assert loaded.digest == weight_digest(tiny_model)
    with pytest.raises(CheckpointError, match="has 10 classes, the model has 7: set num_classes to 10"):
        load_model(config(tmp_path / "a.npz", num_classes=7))
    with pytest.raises(CheckpointError, match="on 32x32 pixels, the model reads 224x224"):
        load_model(config(tmp_path / "a.npz", model_args={k: v for k, v in SIZES.items() if k != "img_size"}))
    with pytest.raises(CheckpointError, match=r"lacks 12 tensors of the model, as 'blocks\.1|cannot|does not fit"):
        load_model(config(tmp_path / "a.npz", model_args={**SIZES, "depth": 3}))
    with pytest.raises(CheckpointError, match=r"has \d+ values, the model reads \d+: it is of another model"):
        load_model(config(tmp_path / "a.npz", model_args={**SIZES, "depth": 1}))
    del arrays["head/kernel"], arrays["head/bias"]
    np.savez(tmp_path / "b.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match="has no classifier"):
        load_model(config(tmp_path / "b.npz"))


def test_a_layer_before_the_classifier_is_refused_and_not_left_out(tmp_path: Path, tiny_model: nn.Module) -> None:
    """As in Google's first ViTs for ImageNet-21k: timm's readers skip it, so that the classifier reads other values."""
    weights = tiny_model.state_dict()
    width = weights["cls_token"].shape[-1]
    layer = {"pre_logits/kernel": np.zeros((width, width), np.float32), "pre_logits/bias": np.zeros(width, np.float32)}
    np.savez(tmp_path / "a.npz", **jax_layout(weights), **layer)  # pyright: ignore[reportArgumentType]
    torch.save({**weights, "pre_logits.fc.weight": torch.zeros(width, width)}, tmp_path / "a.pth")
    for name in ("a.npz", "a.pth"):
        with pytest.raises(CheckpointError, match=rf"{name}' was trained with a layer before the classifier, 'pre_log"):
            load_model(config(tmp_path / name))
    # A student starts from such weights all the same.
    assert load_model(config(tmp_path / "a.npz"), trained=False).digest == weight_digest(tiny_model)


def jax_layout(weights: dict[str, torch.Tensor], *, heads: int = 2) -> dict[str, np.ndarray]:
    """A ViT's weights under the names and in the shapes of the original JAX code."""
    value = {name: tensor.numpy() for name, tensor in weights.items()}
    made = {
        "cls": value["cls_token"],
        "embedding/kernel": value["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": value["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": value["pos_embed"],
        "Transformer/encoder_norm/scale": value["norm.weight"],
        "Transformer/encoder_norm/bias": value["norm.bias"],
        "head/kernel": value["head.weight"].T,
        "head/bias": value["head.bias"],
    }
    for block in range(2):
        ours, theirs = f"blocks.{block}.", f"Transformer/encoderblock_{block}/"
        for number, norm in ((0, "norm1"), (2, "norm2")):
            made[f"{theirs}LayerNorm_{number}/scale"] = value[f"{ours}{norm}.weight"]
            made[f"{theirs}LayerNorm_{number}/bias"] = value[f"{ours}{norm}.bias"]
        attention, width = f"{theirs}MultiHeadDotProductAttention_1/", value["cls_token"].shape[-1]
        qkv, bias = value[f"{ours}attn.qkv.weight"], value[f"{ours}attn.qkv.bias"]
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            made[f"{attention}{name}/kernel"] = qkv[rows].T.reshape(width, heads, -1)
            made[f"{attention}{name}/bias"] = bias[rows].reshape(heads, -1)
        made[f"{attention}out/kernel"] = value[f"{ours}attn.proj.weight"].T.reshape(heads, -1, width)
        made[f"{attention}out/bias"] = value[f"{ours}attn.proj.bias"]
        for number, name in enumerate(("fc1", "fc2")):
            made[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = value[f"{ours}mlp.{name}.weight"].T
            made[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = value[f"{ours}mlp.{name}.bias"]
    return made


def test_other_ways_to_misconfigure() -> None:
    with pytest.raises(ConfigError, match="in_chans must be 1 or 3, not 4"):
        ModelConfig(name="a", in_chans=4)
    with pytest.raises(ConfigError, match="not both"):
        ModelConfig(name="a", pretrained=True, checkpoint="b.pth")
    with pytest.raises(ConfigError, match="num_classes must be at least 1, not 0"):
        ModelConfig(name="a", num_classes=0)


@pytest.mark.parametrize(("mode", "size"), [("RGB", (40, 90)), ("L", (8, 8)), ("RGBA", (32, 32))])
def test_real_images_of_any_size_and_mode(tiny_folder: Path, mode: str, size: tuple[int, int]) -> None:
    transform = RealImageTransform(load_model(ModelConfig(name=f"local-dir:{tiny_folder}")))
    pixels = transform(Image.new(mode, size, "white"))
    assert pixels.shape == (3, 32, 32)
    assert torch.allclose(pixels, torch.ones(3, 32, 32), atol=1e-5)


def test_a_folder_without_an_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_classes": 10}')
    with pytest.raises(ModelError, match=r"config\.json names no timm architecture \(a folder of transformers is read"):
        load_model(ModelConfig(name=f"local-dir:{tmp_path}"))
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    with pytest.raises(ModelError, match="a folder of transformers is read without a checkpoint"):
        load_model(ModelConfig(name=f"local-dir:{tmp_path}", checkpoint="a.pth"))


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, None])
def test_a_folder_with_corrupt_weights(tmp_path: Path, tiny_folder: Path, content: bytes | None) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000] if content is None else content)
    with pytest.raises(CheckpointError, match=r"broken/model\.safetensors"):
        load_model(ModelConfig(name=f"local-dir:{folder}"))


@pytest.mark.parametrize("uri", ["memory://made/teacher", "simplecache::memory://made/teacher"])
def test_a_folder_that_is_not_local_is_named(uri: str) -> None:
    config = ModelConfig(name=f"local-dir:{uri}")
    with pytest.raises(ConfigError, match=f"^model 'local-dir:{uri}': local-dir: takes a folder of this machine"):
        load_model(config)


@pytest.mark.parametrize("dropped", ["head.weight", "blocks.1.mlp.fc1.bias"])
def test_tensors_that_timm_lets_be_missing_are_refused(tmp_path: Path, dropped: str) -> None:
    """It loads some families without a check, and logs what it left as it was initialized."""
    name = "vit_base_patch16_siglip_gap_224"
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    weights = timm.create_model(name, num_classes=10, **sizes).state_dict()
    del weights[dropped]
    torch.save(weights, tmp_path / "weights.pth")
    config = ModelConfig(name=name, checkpoint=str(tmp_path / "weights.pth"), num_classes=10, model_args=sizes)
    with pytest.raises(CheckpointError, match=rf"missing tensors? \({dropped}\)|{dropped}|no classifier"):
        load_model(config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_half_precision_are_read_exactly(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    half = {name: value.to(dtype) for name, value in make_tiny_model().state_dict().items()}
    file = tmp_path / f"half.{suffix}"
    torch.save(half, file) if suffix == "pth" else safetensors.torch.save_file(half, file)
    read = load_model(config(file)).model.state_dict()
    assert {value.dtype for value in read.values()} == {torch.float32}
    assert all(torch.equal(read[name], value.float()) for name, value in half.items())


def replaced_head() -> nn.Module:
    """A model of 10 classes with another head, as many fine-tune it: `num_classes` still says 10."""
    model: Any = make_tiny_model()
    model.head = nn.Linear(32, 3)
    return model.eval()


def test_a_head_that_was_put_in_is_saved_with_its_classes(tmp_path: Path) -> None:
    model, images = replaced_head(), torch.randn(2, 3, 32, 32)
    save_model(model, tmp_path, class_names=["a", "b", "c"], mean=HALF, std=HALF)
    loaded = load_model(ModelConfig(name=f"local-dir:{tmp_path}"))
    assert loaded.class_names == ["a", "b", "c"]
    assert torch.equal(loaded.model(images), model(images))
    assert model.num_classes == 10
    with pytest.raises(ModelError, match="VisionTransformer has 3 classes, class_names has 10"):
        save_model(model, tmp_path, class_names=list("abcdefghij"), mean=HALF, std=HALF)


def test_layers_that_share_weights_or_hold_them_in_another_order_are_saved(tmp_path: Path) -> None:
    """As the blocks of CoaT do, which share a position encoding."""
    sizes: dict[str, Any] = {"embed_dims": (16, 16, 16, 16), "serial_depths": (2, 1, 1, 1)}
    model: Any = timm.create_model("coat_lite_tiny", img_size=64, num_classes=3, **sizes).eval()
    assert model.cpe1.proj.weight is model.serial_blocks1[0].cpe.proj.weight
    for number, each in enumerate((model, make_tiny_model(num_classes=3).to(memory_format=torch.channels_last))):
        folder = tmp_path / str(number)
        save_model(each, folder, class_names=list("abc"), mean=HALF, std=HALF)
        loaded = load_model(ModelConfig(name=f"local-dir:{folder}"))
        images = torch.randn(2, *loaded.input_size)
        assert torch.equal(loaded.model(images), each(images))


@pytest.mark.parametrize("num_classes", [3, 10])
def test_a_head_of_several_layers_is_named_before_anything_is_saved(tmp_path: Path, num_classes: int) -> None:
    """timm would look for `head.weight` in vain, also where the number of classes is the old one."""
    model: Any = make_tiny_model()
    model.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(32, num_classes))
    names = [str(number) for number in range(num_classes)]
    with pytest.raises(ModelError) as refused:
        save_model(model, tmp_path / "m", class_names=names, mean=HALF, std=HALF)
    assert str(refused.value) == (
        "VisionTransformer has no head.bias, head.weight and has head.1.bias, head.1.weight, unlike the model that "
        "timm would load from the folder; put the one layer that has weights in the place of 'head'"
    )
    assert not (tmp_path / "m").exists()
    model.head = model.head[1]
    save_model(model, tmp_path / "m", class_names=names, mean=HALF, std=HALF)
    assert load_model(ModelConfig(name=f"local-dir:{tmp_path / 'm'}")).class_names == names


def without_the_last_block(model: Any) -> nn.Module:
    model.blocks = model.blocks[:-1]
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (without_the_last_block(make_tiny_model()), r"has no blocks\.1\.attn.*, \.\.\., unlike .* from the folder$"),
        (make_tiny_model(norm_layer=nn.LayerNorm), "was made with norm_layer=.*, which a config.json cannot hold"),
        (VisionTransformer(depth=1, num_classes=10), "VisionTransformer has no pretrained_cfg with an architecture"),
        (nn.Linear(1, 10), "Linear has no pretrained_cfg with an architecture"),
        (timm.create_model("resnet10t", features_only=True), "FeatureListNet has no classifier to save"),
        (torch.compile(make_tiny_model()), "give the model that is wrapped, its '_orig_mod'"),
    ],
)
def test_what_timm_could_not_load_is_not_saved(tmp_path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        save_model(model, tmp_path / "m", class_names=list("abcdefghij"), mean=HALF, std=HALF)
    assert not (tmp_path / "m").exists()


def test_a_folder_whose_config_misstates_the_classes_of_its_weights_says_what_to_set(tmp_path: Path) -> None:
    """timm's own function writes `num_classes`, which stays what it was."""
    model, images = replaced_head(), torch.randn(2, 3, 32, 32)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)  # pyright: ignore[reportPrivateImportUsage]
    name = f"local-dir:{tmp_path}"
    with pytest.raises(CheckpointError, match="has 3 classes, the model has 10: set num_classes to 3"):
        load_model(ModelConfig(name=name))
    with pytest.raises(ModelError, match="was trained for 3 classes, num_classes says 7"):
        load_model(ModelConfig(name=name, num_classes=7))
    assert torch.equal(load_model(ModelConfig(name=name, num_classes=3)).model(images), model(images))


@pytest.mark.parametrize(
    ("inside", "advice"),
    [
        ("adapter_config.json", r"it is an adapter of PEFT; merge it first \(model = model\.merge_and_unload\(\)\)"),
        ("latest", r"it is a DeepSpeed checkpoint; convert it with its zero_to_fp32\.py"),
        ("checkpoint-500/config.json", r"give one of the model folders in it \(checkpoint-500\)"),
        ("model_best.pth.tar", r"set name to timm's name .* checkpoint to a file in it \(model_best\.pth\.tar\)"),
        ("model.safetensors.index.json", r"checkpoint to a file in it \(model\.safetensors\.index\.json\)"),
    ],
)
def test_a_folder_that_is_no_models_says_what_to_give(tmp_path: Path, inside: str, advice: str) -> None:
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).write_text("{}")
    with pytest.raises(ModelError, match=advice) as caught:
        load_model(ModelConfig(name=f"local-dir:{tmp_path}"))
    assert len(str(caught.value).splitlines()) == 1
