from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pipeline.distillation.config import StudentConfig
from pipeline.distillation.students import Student, build_student, prune_depth
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.models import LoadedModel, ModelConfig, load_model, save_model, weight_digest
from tests.conftest import make_tiny_model
from tests.distillation.conftest import make_images

TINY_ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
IMAGES = torch.from_numpy(make_images(3).pixels)
KEEP = torch.tensor([[0, 3, 15], [1, 2, 3], [4, 8, 12]])


def tiny_student(**changes: object) -> StudentConfig:
    model = ModelConfig(name="vit_tiny_patch16_224", model_args={**TINY_ARGS, **changes})
    return StudentConfig(model=model)


def reload(student: Student, teacher: LoadedModel, folder: Path) -> nn.Module:
    save_model(student.model, folder, class_names=teacher.class_names, mean=student.mean, std=student.std)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def test_a_student_whose_arguments_leave_out_a_part_that_it_runs_is_refused_in_a_line(teacher: LoadedModel) -> None:
    three_stages = ModelConfig(name="resnet10t", model_args={"layers": [1, 1, 1], "channels": [8, 16, 32]})
    with pytest.raises(ModelError, match=r"student ResNet cannot read images \[3, 32, 32\]: AttributeError: .*layer4"):
        build_student(StudentConfig(model=three_stages), teacher, seed=0)


@pytest.mark.parametrize("blocks", [[0], [1], [0, 1]])
def test_a_depth_pruned_copy_runs_the_blocks_that_are_kept(teacher: LoadedModel, blocks: list[int]) -> None:
    student = build_student(StudentConfig(depth_pruned=blocks), teacher, seed=0)
    model = teacher.model
    kept = [model.blocks[block] for block in blocks]  # type: ignore[index]
    tokens = model.norm_pre(model.pos_drop(model._pos_embed(model.patch_embed(IMAGES))))  # type: ignore[operator]
    for block in kept:
        tokens = block(tokens)  # type: ignore[operator]
    expected = model.forward_head(model.norm(tokens))  # type: ignore[operator]
    torch.testing.assert_close(student(IMAGES), expected)


def test_a_depth_pruned_copy_is_saved_and_loaded_by_timm(teacher: LoadedModel, tmp_path: Path) -> None:
    student = build_student(StudentConfig(depth_pruned=[1]), teacher, seed=0)
    reloaded = reload(student, teacher, tmp_path)
    assert len(reloaded.blocks) == 1  # type: ignore[arg-type]
    torch.testing.assert_close(reloaded(IMAGES), student(IMAGES), rtol=0, atol=0)
    again = load_model(ModelConfig(name=f"local-dir:{tmp_path}"))
    assert again.class_names == teacher.class_names
    assert again.data_config == teacher.data_config


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "eva02_tiny_patch14_224",
    ],
)
def test_other_families_are_pruned_and_read_kept_tokens(tmp_path: Path, name: str) -> None:
    model = timm.create_model(name, img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=2, num_classes=10)
    save_model(model, tmp_path, class_names=[str(i) for i in range(10)], mean=(0.5,) * 3, std=(0.5,) * 3)
    teacher = load_model(ModelConfig(name=f"local-dir:{tmp_path}"))
    student = build_student(StudentConfig(depth_pruned=[0, 2]), teacher, seed=0)
    logits, tokens = student.forward_tokens(IMAGES, KEEP)
    assert logits.shape == (3, 10)
    assert tokens.shape[1] == int(student.model.num_prefix_tokens) + 3  # type: ignore[arg-type]
    own = {key: value for key, value in student.model.state_dict().items() if key.startswith("blocks.1.")}
    assert own
    for key, value in own.items():
        assert torch.equal(value, teacher.model.state_dict()[key.replace("blocks.1.", "blocks.2.")])
    torch.testing.assert_close(reload(student, teacher, tmp_path / "student")(IMAGES), student(IMAGES))


def test_the_teacher_is_left_as_it_is(teacher: LoadedModel) -> None:
    before = weight_digest(teacher.model)
    student = build_student(StudentConfig(depth_pruned=[0], linear_head=True), teacher, seed=0)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.zero_()
    assert weight_digest(teacher.model) == before


def test_a_new_student_has_the_teachers_classes_and_normalization_and_its_seeds_weights(teacher: LoadedModel) -> None:
    torch.manual_seed(123)
    first, again, other = (build_student(tiny_student(), teacher, seed=seed) for seed in (0, 0, 1))
    assert first.model.num_classes == 10
    assert (first.mean, first.std) == (teacher.mean, teacher.std)
    assert weight_digest(first.model) == weight_digest(again.model) != weight_digest(other.model)


def test_a_student_on_the_teachers_grid_reads_only_kept_tokens(teacher: LoadedModel) -> None:
    student = build_student(tiny_student(), teacher, seed=0)
    assert student.vit is not None
    changed = IMAGES.clone()
    changed[0, :, 8:16, 8:16] += 1  # patch 5, which image 0 does not keep
    assert torch.equal(student(changed, KEEP), student(IMAGES, KEEP))
    assert not torch.equal(student(changed), student(IMAGES))


@pytest.mark.parametrize(
    "student",
    [
        pytest.param(tiny_student(patch_size=16), id="another grid"),
        pytest.param(StudentConfig(model=ModelConfig(name="resnet10t")), id="no ViT"),
    ],
)
def test_any_other_student_reads_the_filled_image(teacher: LoadedModel, student: StudentConfig, tmp_path: Path) -> None:
    built = build_student(student, teacher, seed=0)
    assert built.vit is None
    assert torch.equal(built(IMAGES, KEEP), built(IMAGES))
    reloaded = reload(built, teacher, tmp_path)
    torch.testing.assert_close(reloaded(IMAGES), built(IMAGES))
    assert load_model(ModelConfig(name=f"local-dir:{tmp_path}")).input_size == teacher.input_size


def test_linear_head_trains_a_new_head_alone(teacher: LoadedModel, tiny_folder: Path) -> None:
    config = StudentConfig(model=ModelConfig(name=f"local-dir:{tiny_folder}"), linear_head=True)
    student = build_student(config, teacher, seed=0).train()
    assert not any(module.training for module in student.modules())
    trained = [name for name, parameter in student.model.named_parameters() if parameter.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    assert len(student.trained_parameters()) == 2
    before, after = teacher.model.state_dict(), student.model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["head.weight", "head.bias"]


def test_a_frozen_backbone_may_come_from_other_classes(teacher: LoadedModel, tmp_path: Path) -> None:
    backbone = make_tiny_model(num_classes=3)
    save_model(backbone, tmp_path, class_names=list("abc"), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = ModelConfig(name=f"local-dir:{tmp_path}")
    student = build_student(StudentConfig(model=model, linear_head=True), teacher, seed=0)
    assert student(IMAGES).shape == (3, 10)


def test_a_trained_student_has_the_teachers_order_of_classes(teacher: LoadedModel, tmp_path: Path) -> None:
    half = (0.5,) * 3
    for name, names in (("a", teacher.class_names[::-1]), ("b", ["x", *teacher.class_names[:9]])):
        save_model(make_tiny_model(), tmp_path / name, class_names=names, mean=half, std=half)
        model = ModelConfig(name=f"local-dir:{tmp_path / name}")
        with pytest.raises(ModelError, match="has the teacher's classes in another order: class 'class "):
            build_student(StudentConfig(model=model), teacher, seed=0)
        # A new classifier has the teacher's.
        build_student(StudentConfig(model=model, linear_head=True), teacher, seed=0)
    for name, names in (("c", teacher.class_names), ("d", list("abcdefghij"))):
        save_model(make_tiny_model(), tmp_path / name, class_names=names, mean=half, std=half)
        build_student(StudentConfig(model=ModelConfig(name=f"local-dir:{tmp_path / name}")), teacher, seed=0)


def test_distilled_models_have_two_heads(teacher: LoadedModel, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**TINY_ARGS, "num_classes": 10}
    backbone = timm.create_model("deit_tiny_distilled_patch16_224", **arguments)
    save_model(backbone, tmp_path, class_names=teacher.class_names, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = ModelConfig(name=f"local-dir:{tmp_path}")
    student = build_student(StudentConfig(model=model, linear_head=True), teacher, seed=0)
    assert len(student.trained_parameters()) == 4


def test_a_student_with_its_own_normalization_sees_the_same_colors(teacher: LoadedModel) -> None:
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    model = make_tiny_model(seed=5)
    student = Student(model, teacher, mean=mean, std=std)
    colors = torch.rand(2, 3, 32, 32)
    seen_by_teacher = (colors - torch.tensor(teacher.mean).view(3, 1, 1)) / torch.tensor(teacher.std).view(3, 1, 1)
    seen_by_student = (colors - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(student(seen_by_teacher), model(seen_by_student), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("student", "error", "message"),
    [
        (StudentConfig(depth_pruned=[0, 7]), ConfigError, r"no block 7, the teacher has 2 \(0 to 1\)"),
        (StudentConfig(model=ModelConfig(name="resnet10t", num_classes=7)), ConfigError, "7, the teacher has 10"),
        (
            StudentConfig(model=ModelConfig(name="resnet10t"), linear_head=True),
            ConfigError,
            "student.model 'resnet10t' has no weights to freeze: set student.model.pretrained or checkpoint",
        ),
        (StudentConfig(model=ModelConfig(name="no_such_model")), ModelError, "no_such_model"),
        (tiny_student(img_size=64), ModelError, r"student VisionTransformer cannot read images \[3, 32, 32\]"),
        (
            StudentConfig(model=ModelConfig(name="resnet10t", in_chans=1)),
            ConfigError,
            "in_chans is 1, .* have 3 channels",
        ),
        (
            StudentConfig(model=ModelConfig(name="resnet10t", checkpoint="/nowhere/student.pth")),
            CheckpointError,
            "/nowhere/student.pth",
        ),
    ],
)
def test_impossible_students(
    teacher: LoadedModel, student: StudentConfig, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_student(student, teacher, seed=0)


def test_a_backbone_for_other_channels_is_refused(teacher: LoadedModel, tmp_path: Path) -> None:
    gray = make_tiny_model(in_chans=1)
    save_model(gray, tmp_path, class_names=[str(i) for i in range(10)], mean=(0.5,), std=(0.5,))
    student = StudentConfig(model=ModelConfig(name=f"local-dir:{tmp_path}"))
    with pytest.raises(ModelError, match="reads 1 channels, the teacher's images have 3"):
        build_student(student, teacher, seed=0)


def test_a_model_without_blocks_cannot_be_pruned(teacher: LoadedModel) -> None:
    resnet = timm.create_model("resnet10t", num_classes=10)
    with pytest.raises(ModelError, match="ResNet has no blocks to choose from"):
        prune_depth(resnet, [0])
    with pytest.raises(ModelError, match="no blocks"):
        build_student(StudentConfig(depth_pruned=[0]), replace(teacher, model=resnet), seed=0)


def test_a_student_that_reads_kept_patches_drops_none_itself(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    names = [str(label) for label in range(10)]
    save_model(make_tiny_model(patch_drop_rate=0.5), folder, class_names=names, mean=(0.5,) * 3, std=(0.5,) * 3)
    teacher = load_model(ModelConfig(name=f"local-dir:{folder}"))
    student = build_student(StudentConfig(depth_pruned=[0, 1]), teacher, seed=0).train()
    # Of 16 patches and a CLS token.
    assert student.forward_tokens(IMAGES)[1].shape[1] == 17
    assert student.forward_tokens(IMAGES, KEEP)[1].shape[1] == 4


def test_a_patch_dropout_without_effect_is_refused(teacher: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="patch_drop_rate has no effect"):
        build_student(tiny_student(patch_drop_rate=0.5), teacher, seed=0)
