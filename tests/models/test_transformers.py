"""Folders of transformers' image classifiers, loaded as timm models."""

import json
import math
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import transformers
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT
from torchvision.transforms._presets import ImageClassification

from jobs import synthesize
from pipeline.artifacts.facts import Facts
from pipeline.distillation.students import prune_depth
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.evaluation import open_artifact
from pipeline.models import LoadedModel, ModelConfig, load_model, save_model
from pipeline.models.epsilon import copy_notice
from pipeline.models.image_processor import read_processor
from pipeline.models.loading import RealImageTransform
from pipeline.vit.subset import SubsetViT

SIZES: dict[str, Any] = {
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8},
    "id2label": dict(enumerate("abcde")),
}
PLAIN = {**SIZES, "intermediate_size": 40}
DINOV2 = {**SIZES, "mlp_ratio": 3}
VISION = {name: value for name, value in PLAIN.items() if name != "id2label"}
MODELS: dict[str, Callable[[], Any]] = {
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**PLAIN)),
    # A large epsilon, other activation, no biases: none of them may fall back to timm's.
    "vit-unusual": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**PLAIN, layer_norm_eps=0.1, hidden_act="gelu_pytorch_tanh", qkv_bias=False)
    ),
    "vit-gray": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**PLAIN, num_channels=1)),
    "deit": lambda: transformers.DeiTForImageClassification(transformers.DeiTConfig(**PLAIN)),
    "deit-distilled": lambda: transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**PLAIN)),
    "dinov2": lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**DINOV2)),
    "dinov2-swiglu": lambda: transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(**DINOV2, use_swiglu_ffn=True)
    ),
    "dinov2-registers": lambda: transformers.Dinov2WithRegistersForImageClassification(
        transformers.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=3)
    ),
    "dinov2-no-registers": lambda: transformers.Dinov2WithRegistersForImageClassification(
        transformers.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=0)
    ),
    "siglip": lambda: transformers.SiglipForImageClassification(
        transformers.SiglipConfig(vision_config=VISION, id2label=SIZES["id2label"])
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """A tiny classifier of transformers, its kind, and the folder that it was saved to."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, save(MODELS[request.param](), folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ViT with its preprocessing."""
    folder = tmp_path_factory.mktemp("plain")
    save(MODELS["vit"](), folder)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(folder)
    return folder


def save(model: Any, folder: Path) -> Any:
    """Save a model with random weights, so that two that are swapped give other logits."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model.eval()


def load(folder: Path, **settings: Any) -> LoadedModel:
    return load_model(ModelConfig(name=f"local-dir:{folder}", **settings))


def copied(folder: Path, target: Path, **changes: Any) -> Path:
    """Copy a folder with changes to its config.json; None removes an entry."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | changes
    stated = {name: value for name, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(stated))
    return target


def test_logits_are_those_of_transformers(made: tuple[str, Path, Any]) -> None:
    kind, folder, theirs = made
    loaded = load(folder)
    images = torch.randn(3, loaded.input_size[0], 32, 32)
    with torch.no_grad():
        wanted = theirs(images).logits
        torch.testing.assert_close(loaded.model(images), wanted, rtol=0, atol=1e-4)
    assert wanted.std() > 0.1
    assert loaded.class_names == list("abcde")
    assert loaded.input_size == (1 if kind == "vit-gray" else 3, 32, 32)


def test_a_subset_of_all_patches_gives_the_same_logits(made: tuple[str, Path, Any]) -> None:
    loaded = load(made[1])
    images = torch.randn(2, loaded.input_size[0], 32, 32)
    every = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        read = SubsetViT(loaded.model)
        torch.testing.assert_close(read(images, every), loaded.model(images), rtol=0, atol=1e-4)
        scores = read.forward_scores(images, every, targets=torch.tensor([0, 1]))[1]
    assert scores.shape == (2, 16)


def test_a_pruned_copy_is_saved_as_timm_saves_it(made: tuple[str, Path, Any], tmp_path: Path) -> None:
    loaded = load(made[1])
    pruned = prune_depth(loaded.model, [1])
    save_model(pruned, tmp_path, class_names=loaded.class_names, mean=loaded.mean, std=loaded.std)
    images = torch.randn(2, *loaded.input_size)
    with torch.no_grad():
        assert torch.equal(load(tmp_path).model(images), pruned(images))
    notices = copy_notice("copy", pruned, loaded.model)
    if made[0] == "vit-unusual":
        assert notices[0].startswith("copy: its LayerNorms use timm's epsilon 1e-06, not transformers' 0.1, because a ")
    assert bool(notices) == (made[0].startswith(("vit", "deit")))


def test_the_number_of_registers_is_the_configs_or_that_of_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "four"
    theirs = save(
        transformers.Dinov2WithRegistersForImageClassification(transformers.Dinov2WithRegistersConfig(**DINOV2)), folder
    )
    images = torch.randn(2, 3, 32, 32)
    silent = copied(folder, tmp_path / "silent", num_register_tokens=None)
    assert "num_register_tokens" not in json.loads((silent / "config.json").read_text())
    with torch.no_grad():
        torch.testing.assert_close(load(silent).model(images), theirs(images).logits, rtol=0, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"register_tokens' is \[1, 4, 24\] .* says \[1, 2, 24\]"):
        load(copied(folder, tmp_path / "two", num_register_tokens=2))
    with pytest.raises(ModelError, match="states 'four' as num_register_tokens"):
        load(copied(folder, tmp_path / "text", num_register_tokens="four"))


@pytest.mark.parametrize("again", [False, True])
def test_a_timm_model_in_transformers_wrapper_is_read(tmp_path: Path, again: bool) -> None:
    """Its config is timm's, but for `model_args`, which may be null, and `pretrained_cfg`, which may be missing."""
    if again:
        source: Any = timm.create_model("test_vit", num_classes=4)
        timm.models.save_for_hf(source, str(tmp_path / "hub"), safe_serialization=True)  # pyright: ignore[reportPrivateImportUsage]
        stated = json.loads((tmp_path / "hub" / "config.json").read_text())
        # As published ones are: their arguments are those of the architecture.
        del stated["model_args"]
        stated["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
        (tmp_path / "hub" / "config.json").write_text(json.dumps(stated | {"label_names": list("abcd")}))
        theirs: Any = transformers.TimmWrapperForImageClassification.from_pretrained(str(tmp_path / "hub"))
    else:
        made = transformers.TimmWrapperConfig(architecture="test_vit", num_labels=4)  # type: ignore[call-arg]
        theirs = transformers.TimmWrapperForImageClassification(made)
    save(theirs, folder := tmp_path / "saved")
    stated = json.loads((folder / "config.json").read_text())
    assert stated["model_type"] == "timm_wrapper"
    assert stated["model_args"] is None
    loaded, images = load(folder), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), theirs(images).logits)
    assert loaded.class_names == (list("abcd") if again else list("0123"))
    assert not again or loaded.mean == (0.1, 0.2, 0.3)
    # A student from there is saved and loaded as any other.
    save_model(loaded.model, tmp_path / "student", class_names=list("wxyz"), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(load(tmp_path / "student").model(images), loaded.model(images))


def test_a_file_of_transformers_as_a_checkpoint_is_refused_with_what_to_give(vit: Path) -> None:
    settings = {
        "name": "vit_tiny_patch16_224",
        "model_args": {"depth": 1},
        "checkpoint": str(vit / "model.safetensors"),
    }
    with pytest.raises(CheckpointError, match=rf"does not fit.* names of transformers: set name to local-dir:{vit}, a"):
        load_model(ModelConfig(num_classes=5, **settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["ViTMAEForPreTraining"]},
            "that of 'ViTMAEForPreTraining' of transformers; converted are ViTFor",
        ),
        ({"architectures": None}, "that of 'vit' of transformers; converted are"),
        ({"architectures": [{}]}, "that of 'vit' of transformers"),
        ({"hidden_act": "mish"}, "states the activation 'mish'; converted are gelu"),
        ({"hidden_act": ["gelu"]}, r"states the activation \['gelu'\]"),
        ({"hidden_size": None}, "states no hidden_size that is a whole number above 0: None"),
        ({"num_attention_heads": 2.5}, "states no num_attention_heads that is a whole number"),
        ({"image_size": "32"}, "states '32' as image_size"),
        ({"layer_norm_eps": "small"}, "states 'small' as layer_norm_eps"),
        ({"num_channels": "three"}, "states 'three' as num_channels"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(
    changes: dict[str, Any], message: str, vit: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=rf"^model 'local-dir:.*': its config\.json .*{message}"):
        load(copied(vit, tmp_path / "m", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, r"has 16 tensors that the model does not read: 'vit\.encoder\.layer\.1"),
        ({"num_hidden_layers": 3}, r"lacks 16 tensors: 'vit\.encoder\.layer\.2"),
        ({"qkv_bias": False}, "has 6 tensors that the model does not read: .*query.bias"),
        (
            {"image_size": 64},
            r"position_embeddings' is \[1, 17, 24\] in timm's shape, its config.json says \[1, 65, 24\]",
        ),
        ({"id2label": {"0": "a", "1": "b"}}, "has 5 classes, its config.json 2: correct id2label and label2id there"),
        ({"intermediate_size": 41}, r"intermediate.dense\..*\[40.*\[41"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(
    changes: dict[str, Any], message: str, vit: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.safetensors'.*{message}"):
        load(copied(vit, tmp_path / "m", **changes))


def test_weights_that_others_saved_with_the_names_of_version_5_are_read(
    made: tuple[str, Path, Any], tmp_path: Path
) -> None:
    """transformers saves the names that it always had; `torch.save` and `accelerate` save those in memory."""
    kind, folder, theirs = made
    own = copied(folder, tmp_path / "m")
    (own / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), own / "pytorch_model.bin")
    if kind == "dinov2-swiglu":
        # In memory, the two halves of its layer are apart.
        with pytest.raises(CheckpointError, match=r"lacks 8 tensors: .*mlp\.weights_in"):
            load(own)
        return
    assert load(own).digest == load(folder).digest


def test_an_adapter_beside_the_weights_is_refused(vit: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """transformers loads them together, so that the weights alone are another model."""
    for source in (vit, tiny_folder):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        with pytest.raises(CheckpointError, match=r"adapter of PEFT, 'adapter_config\.json', .*other model: merge it"):
            load(folder)


def test_a_repository_in_the_hubs_cache_is_named_with_the_folder_to_give(vit: Path, tmp_path: Path) -> None:
    """Its files are links into `blobs/`."""
    blobs, revision = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    shutil.copytree(vit, blobs)
    revision.mkdir(parents=True)
    for file in blobs.iterdir():
        (revision / file.name).symlink_to(f"../../blobs/{file.name}")
    shutil.move(blobs / "config.json", blobs / "c0ffee")
    (revision / "config.json").unlink()
    (revision / "config.json").symlink_to("../../blobs/c0ffee")
    with pytest.raises(ModelError, match=r"give one of the model folders in it \(snapshots/0a1b\)"):
        load(tmp_path)
    assert load(revision).digest == load(vit).digest


def test_integers_are_refused_and_unread_tensors_are_named(vit: Path, tmp_path: Path) -> None:
    folder = copied(vit, tmp_path / "m")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    pooler = {"vit.pooler.dense.weight": torch.zeros(24, 24), "vit.pooler.dense.bias": torch.zeros(24)}
    safetensors.torch.save_file({**weights, **pooler}, folder / "model.safetensors")
    loaded = load(folder)
    assert loaded.digest == load(vit).digest
    assert "left out, as transformers' classifier does not read them: vit.pooler.dense.bias" in loaded.notices[0]
    whole = {**weights, "vit.layernorm.weight": torch.ones(24, dtype=torch.int8)}
    safetensors.torch.save_file(whole, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'norm\.weight' is int8, as quantized weights are"):
        load(folder)


def test_placeholders_are_no_class_names(vit: Path, tmp_path: Path) -> None:
    filled_in = {str(number): f"LABEL_{number}" for number in range(5)}
    folder = copied(vit, tmp_path / "m", id2label=filled_in, label2id={name: int(n) for n, name in filled_in.items()})
    assert load(folder).class_names == list("01234")


def test_class_names_as_hugging_faces_own_training_script_writes_them(vit: Path, tmp_path: Path) -> None:
    """It writes numbers as text in both directions; names may be numbers too."""
    for names in (["ant", "bee", "cow", "dog", "elk"], ["5", "3", "1", "0", "8"]):
        labels = {"id2label": {str(i): name for i, name in enumerate(names)}}
        inverse = {"label2id": {name: str(i) for i, name in enumerate(names)}}
        loaded = load(copied(vit, tmp_path / names[0], **labels, **inverse))
        assert loaded.class_names == names


def test_class_numbers_with_a_gap_are_named_with_the_file_that_has_them(vit: Path, tmp_path: Path) -> None:
    labels = {str(number): name for number, name in zip((0, 1, 2, 3, 5), "abcde", strict=True)}
    with pytest.raises(ConfigError, match=r"its own config\.json does not number its 5 classes .*: 4 is missing"):
        load(copied(vit, tmp_path / "m", id2label=labels, label2id=None))


def test_class_names_that_repeat_get_the_number_of_their_class(vit: Path, tmp_path: Path) -> None:
    names = ["crane", "bee", "crane", "dog", "elk"]
    labels = {"id2label": {str(i): name for i, name in enumerate(names)}}
    inverse = {"label2id": {name: i for i, name in enumerate(names)}}
    for folder, more in (("both", inverse), ("one", {"label2id": None})):
        loaded = load(copied(vit, tmp_path / folder, **labels, **more))
        assert loaded.class_names == ["crane (0)", "bee", "crane (2)", "dog", "elk"]
        assert loaded.notices[-1].endswith("that repeat got the number of their class: 'crane (0)', 'crane (2)'")
        assert Facts.beside(f"{tmp_path / folder}/model.safetensors").class_names == loaded.class_names
    with pytest.raises(
        ConfigError, match=r"has other names in label2id than in id2label|does not number its 4 classes"
    ):
        load(copied(vit, tmp_path / "wrong", **labels, label2id={"crane": 1, "bee": 1, "dog": 3, "elk": 4}))


def test_another_size_or_class_count_is_handled_as_for_folders_of_timm(vit: Path) -> None:
    loaded = load(vit, model_args={"img_size": 64})
    assert loaded.input_size == (3, 64, 64)
    assert "was trained on 32x32 pixels, the model reads 64x64" in loaded.notices[0]
    with pytest.raises(CheckpointError, match="has 5 classes, the model has 7: set num_classes to 5"):
        load(vit, num_classes=7)
    with pytest.raises(CheckpointError, match="trained on 8x8 pixels of 3 channels, the model reads 8x8 pixels of 1"):
        load(vit, in_chans=1)
    student = load_model(ModelConfig(name=f"local-dir:{vit}", num_classes=7), trained=False)
    assert student.model.num_classes == 7
    assert "LayerNorms use timm's epsilon 1e-06, not transformers' 1e-12" in " ".join(student.notices)


@pytest.mark.parametrize(
    ("processor", "settings"),
    [
        (transformers.ViTImageProcessorPil, {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3]}),
        (
            transformers.DeiTImageProcessorPil,
            {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 3},
        ),
        (
            transformers.BitImageProcessorPil,
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 3},
        ),
    ],
)
def test_real_images_are_prepared_as_transformers_does(
    processor: Any, settings: dict[str, Any], vit: Path, tmp_path: Path
) -> None:
    folder = copied(vit, tmp_path / "m")
    theirs = processor(**settings)
    theirs.save_pretrained(folder)
    loaded = load(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)
    image = Image.fromarray(pixels).resize((120, 90), Image.Resampling.BICUBIC)
    wanted = theirs(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(RealImageTransform(loaded)(image), wanted, rtol=0, atol=0.02)
    assert loaded.notices == ()


CROP = {"crop_size": {"height": 32, "width": 32}}
BASE = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": {"height": 32, "width": 32}}


@pytest.mark.parametrize(
    ("kind", "stated"),
    [
        # What is left out is as the class of the processor has it; a size of one number may be of both edges, or one.
        ("ViTImageProcessor", {}),
        ("ViTImageProcessorFast", {"do_center_crop": None, "crop_size": None, "do_convert_rgb": None}),
        ("ViTImageProcessor", {"size": [32, 32], "image_mean": 0.4, "image_std": 0.3}),
        ("DeiTImageProcessor", {"size": {"height": 40, "width": 40}, **CROP}),
        ("DeiTImageProcessor", {"size": 40, "crop_size": 32}),
        ("BitImageProcessor", {"size": {"shortest_edge": 40}, **CROP}),
        ("BitImageProcessor", {"size": 40, "crop_size": 32, "resample": 2}),
        ("CLIPImageProcessor", {"size": 40, "crop_size": [32, 32]}),
        ("SiglipImageProcessor", {}),
        ("SiglipImageProcessor", {"do_normalize": None}),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_a_processor_leaves_out_is_as_its_class_has_it(
    kind: str, stated: dict[str, Any], nested: bool, vit: Path, tmp_path: Path
) -> None:
    folder = copied(vit, tmp_path / "m")
    entries = {**BASE, "image_processor_type": kind, **stated}
    if nested:
        # The other file is there as well, and does not count.
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": entries}))
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(entries))
    theirs = getattr(transformers, f"{kind.removesuffix('Fast')}Pil").from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3), np.uint8)
    image = Image.fromarray(pixels).resize((120, 90), Image.Resampling.BICUBIC)
    wanted = theirs(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(RealImageTransform(load(folder))(image), wanted, rtol=0, atol=1e-5)


def test_a_processor_without_a_class_is_that_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "dinov2"
    save(MODELS["dinov2"](), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**BASE, "size": 40, "crop_size": 32}))
    stated = load(folder).data_config
    assert (stated["interpolation"], stated["crop_pct"], stated["crop_mode"]) == ("bicubic", 0.8, "center")


def test_another_size_than_transformers_would_read_is_told(vit: Path, tmp_path: Path) -> None:
    """As a DINOv2 of 518 pixels whose processor crops to 224: transformers reads those, with resampled positions."""
    folder = copied(vit, tmp_path / "m")
    processor = {"do_normalize": False, "size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (notice,) = load(folder).notices
    assert "reads 32x32 pixels, but its preprocessor_config.json produces 16x16" in notice
    assert all("produces" not in notice for notice in load(folder, model_args={"img_size": 16}).notices)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "size": 24}))
    assert "produces 24x24" in load(folder).notices[0]


def test_entries_of_a_processor_that_are_null_say_nothing(vit: Path, tmp_path: Path) -> None:
    folder = copied(vit, tmp_path / "m")
    size = {"height": 32, "width": 32, "shortest_edge": None, "longest_edge": None}
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "size": size}))
    loaded = load(folder)
    assert (loaded.data_config["crop_mode"], loaded.notices) == ("squash", ())


@pytest.mark.parametrize(("crop", "edge"), [(384, 450), (448, 491), (336, 475), (224, 256), (224, 224), (518, 592)])
def test_images_are_resized_to_the_pixel(crop: int, edge: int, tmp_path: Path) -> None:
    """timm divides by the share and rounds down, which could lose a pixel."""
    processor = {"do_normalize": False, "size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": crop}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    stated, made = read_processor(str(tmp_path), "ViT") or ({}, 0)
    assert (math.floor(crop / stated["crop_pct"]), made) == (edge, crop)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("[]", "is no JSON object"),
        ("{", "is no JSON: "),
        ('{"do_rescale": false}', r"does not scale pixels to \[0, 1\] \(do_rescale"),
        ('{"do_rescale": null}', "does not scale pixels"),
        ('{"rescale_factor": null}', "does not scale pixels"),
        ('{"do_normalize": false, "size": 32, "do_pad": true}', "pads images"),
        ('{"do_normalize": false, "size": 32, "image_processor_type": "Ours"}', "states no resample, .* 'Ours' then"),
        (
            '{"do_normalize": false, "size": 32, "feature_extractor_type": "U", "resample": 2, "do_center_crop": true}',
            "states the size 32, and which edge 'U' means is not known",
        ),
        ('{"rescale_factor": 0.0078}', "does not scale pixels"),
        ('{"image_mean": [0.5]}', "states no image_mean and image_std"),
        ('{"image_mean": [9], "image_std": [9]}', "is wrong: mean must be of pixels"),
        ('{"do_normalize": false, "size": {"height": 32, "width": 16}}', "states a size that is no square"),
        ('{"do_normalize": false, "size": {"shortest_edge": 32}}', "does not crop"),
        ('{"do_normalize": false, "size": {"longest_edge": 32}}', "resizes the longer edge"),
        ('{"do_normalize": false, "size": 32, "resample": 9}', "unknown resample 9"),
        ('{"do_normalize": false, "size": 32, "resample": [2]}', r"unknown resample \[2\]"),
        ('{"do_normalize": false, "do_resize": false}', "does not resize"),
    ],
)
def test_preprocessing_that_timm_does_not_do_is_refused(stated: str, message: str, vit: Path, tmp_path: Path) -> None:
    folder = copied(vit, tmp_path / "m")
    (folder / "preprocessor_config.json").write_text(stated)
    with pytest.raises(ModelError, match=rf"its preprocessor_config\.json.* {message}.*; set mean, std, interpolation"):
        load(folder)
    own = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"}
    assert load(folder, **own).mean == (0.5, 0.5, 0.5)


def test_preprocessing_that_is_not_stated_is_told(vit: Path, tmp_path: Path) -> None:
    folder = copied(vit, tmp_path / "m")
    (folder / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json: mean, std" in load(folder).notices[0]


@pytest.mark.usefixtures("ray_session")
def test_a_job_takes_such_a_folder(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--teacher.name", f"local-dir:{vit}", "--output", str(tmp_path / "out"), "--images_per_class=1"]
    assert synthesize.main([*flags, "--dry-run"]) == 0, capsys.readouterr().err


def make_torchvision() -> Any:
    torch.manual_seed(0)
    theirs = TorchvisionViT(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=5
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    return theirs


TORCHVISION_SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2}


def test_torchvisions_weights_are_an_artifact_with_torchvisions_normalization(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = make_torchvision()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    settings = {"name": "vit_base_patch16_224", "num_classes": 5, "model_args": TORCHVISION_SHAPE}
    weights = load_model(ModelConfig(checkpoint=str(tmp_path / "theirs.pth"), **settings)).model.state_dict()
    torch.save(weights, tmp_path / "ours.pth")
    config = ModelConfig(checkpoint=str(tmp_path / "ours.pth"), **settings)
    teacher = load_model(config)
    assert teacher.mean == (0.5, 0.5, 0.5)
    pixels = torch.rand(3, 3, 32, 32)
    preset = ImageClassification(crop_size=224)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preset.mean, preset.std))
    predict = open_artifact(str(tmp_path / "theirs.pth"), config, teacher)
    with torch.no_grad():
        torch.testing.assert_close(predict(2 * pixels - 1), theirs((pixels - mean) / std), rtol=0, atol=1e-3)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "layout" in line]
    assert f"note: checkpoint {str(tmp_path / 'theirs.pth')!r} has the layout of torchvision" in line
    # Weights in the teacher's own layout state no normalization: they get the teacher's.
    capsys.readouterr()
    predict = open_artifact(str(tmp_path / "ours.pth"), config, teacher)
    with torch.no_grad():
        torch.testing.assert_close(predict(2 * pixels - 1), theirs(2 * pixels - 1), rtol=0, atol=1e-3)
    assert "note" not in capsys.readouterr().err


def assert_heads_as_put_in_are_read(settings: dict[str, Any], folder: Path) -> None:
    """Fine-tuning replaces all heads by one layer, or the last one."""
    images, checkpoint = torch.randn(2, 3, 32, 32), str(folder / "tuned.pth")
    for heads in (nn.Linear(24, 4), nn.Sequential(nn.Linear(24, 4)), nn.Sequential(OrderedDict(head=nn.Linear(24, 4)))):
        theirs: Any = make_torchvision()
        theirs.heads = heads
        torch.save(theirs.state_dict(), checkpoint)
        loaded = load_model(ModelConfig(checkpoint=checkpoint, **{**settings, "num_classes": 4}))
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(images), theirs(images), rtol=0, atol=1e-4)
    # A layer before it may compute something, although it has no weights.
    theirs.heads = nn.Sequential(nn.Tanh(), nn.Linear(24, 4))
    torch.save(theirs.state_dict(), checkpoint)
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors: 'heads\.head\.bias', 'heads\.head\.weight'"):
        load_model(ModelConfig(checkpoint=checkpoint, **{**settings, "num_classes": 4}))


def test_torchvisions_weights_are_read(tmp_path: Path) -> None:
    theirs = make_torchvision()
    images = torch.randn(3, 3, 32, 32)
    for name, older in (("new", ("mlp.0", "mlp.3")), ("published", ("mlp.linear_1", "mlp.linear_2"))):
        weights = {
            key.replace("mlp.0", older[0]).replace("mlp.3", older[1]): value
            for key, value in theirs.state_dict().items()
        }
        torch.save(weights, tmp_path / f"{name}.pth")
        settings = {"name": "vit_base_patch16_224", "num_classes": 5, "model_args": TORCHVISION_SHAPE}
        loaded = load_model(ModelConfig(checkpoint=str(tmp_path / f"{name}.pth"), **settings))
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(images), theirs(images), rtol=0, atol=1e-4)
    preset = ImageClassification(crop_size=224)
    assert (list(loaded.mean), list(loaded.std)) == (preset.mean, preset.std)
    assert loaded.data_config["interpolation"] == preset.interpolation.value == "bilinear"
    assert loaded.data_config["crop_pct"] == preset.crop_size[0] / preset.resize_size[0]
    assert "has the layout of torchvision, whose own presets are taken unless set: mean (0.485, " in loaded.notices[-1]
    half = [0.5, 0.5, 0.5]
    loaded = load_model(ModelConfig(checkpoint=str(tmp_path / "new.pth"), mean=half, std=half, **settings))
    assert list(loaded.mean) == half
    assert loaded.notices[-1].endswith("unless set: interpolation bilinear, crop_pct 0.875, crop_mode center")
    # As DistributedDataParallel and torchvision's own training code save it.
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    torch.save(wrapped, tmp_path / "ddp.pth")
    averaged = {"n_averaged": torch.tensor(3), **{key: value + 1 for key, value in wrapped.items()}}
    torch.save({"model": weights, "model_ema": averaged, "epoch": 3}, tmp_path / "run.pth")
    for name, use_ema, more in (("ddp", True, 0), ("run", False, 0), ("run", True, 1)):
        checkpoint = str(tmp_path / f"{name}.pth")
        loaded = load_model(ModelConfig(checkpoint=checkpoint, use_ema=use_ema, **settings))
        assert torch.equal(loaded.model.state_dict()["head.weight"], weights["heads.head.weight"] + more)
    assert_heads_as_put_in_are_read(settings, tmp_path)
    torch.save({**weights, "heads.pre_logits.weight": torch.zeros(24, 24)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"has 1 tensors that the model does not read: 'heads\.pre_logits"):
        load_model(ModelConfig(checkpoint=str(tmp_path / "more.pth"), **settings))
