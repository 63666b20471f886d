"""Teachers of every family: on token subsets, and masked."""

from typing import Any

import pytest
import timm
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.inversion import (
    AnyTeacher,
    Inversion,
    InversionConfig,
    MaskedTeacher,
    Teacher,
    invert,
    make_teacher,
    score,
    start_images,
)
from pipeline.inversion.flops import TeacherShape
from tests.conftest import HALF, TINY, WHOLE_IMAGES, enlarge_weights, make_tiny_model, make_whole

# Still views: an untrained teacher sees another class in each shifted one.
SPARSE: dict[str, Any] = {
    **{"iterations": 40, "lr": 0.1, "jitter": 0.0, "flip": 0.0},
    **{"stop_steps": [5, 10], "stop_fractions": [0.5, 0.25]},
}
MASKED = {**SPARSE, "mask_only": True}
TARGETS = torch.tensor([3, 1, 4, 1, 5])
SEEDS = [10, 11, 12, 13, 14]

FAMILIES = [
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_gap_224",
    "vit_base_patch16_reg4_gap_256",
    "vit_small_patch16_18x2_224",
    "vit_dlittle_patch16_reg1_gap_256",
    "eva02_tiny_patch14_336",
    "vit_small_patch16_dinov3",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_base_patch16_rope_reg1_gap_256",
    "vit_pe_core_base_patch16_224",
]


def make(name: str) -> Teacher:
    torch.manual_seed(0)
    model = enlarge_weights(timm.create_model(name, **TINY))  # type: ignore[arg-type]
    return Teacher(model, mean=HALF, std=HALF)


def make_masked(name: str) -> MaskedTeacher:
    return MaskedTeacher(make_whole(name), image_size=(64, 64), mean=HALF, std=HALF)


def assert_sees_the_classes(teacher: AnyTeacher, config: InversionConfig) -> None:
    """The loss falls, and what is stored is of the class for the patches that it keeps."""
    result = invert(teacher, TARGETS, config, seeds=SEEDS)
    keep = result.keep_indices
    before, _, _ = score(teacher, teacher.to_uint8(start_images(teacher, SEEDS)), keep, TARGETS)
    after, _, prediction = score(teacher, teacher.to_uint8(result.images), keep, TARGETS)
    assert keep.shape == (5, teacher.num_patches * 3 // 8)
    assert (after < before).all()
    assert prediction.tolist() == TARGETS.tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_families_invert_on_a_token_subset(name: str) -> None:
    assert_sees_the_classes(make(name), InversionConfig(**SPARSE))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_small_patch16_18x2_224"])
def test_families_invert_in_bfloat16(name: str) -> None:
    assert_sees_the_classes(make(name), InversionConfig(**SPARSE, dtype="bfloat16"))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_tiny_patch16_224"])
def test_ranking_decides_what_survives(name: str) -> None:
    """Up to the first stop the images are the same; what is taken of them is not."""
    teacher, kept = make(name), []
    for ranking in ("auto", "gradient_activation"):
        run = Inversion(teacher, TARGETS, InversionConfig(**SPARSE, ranking=ranking), seeds=SEEDS)
        for _ in range(6):
            run.step()
        kept.append(run.keep_indices)
    assert not torch.equal(*kept)


@pytest.mark.parametrize("name", [*WHOLE_IMAGES, "vit_tiny_patch16_224"])
def test_families_invert_masked(name: str) -> None:
    assert_sees_the_classes(make_masked(name), InversionConfig(**MASKED))


def test_a_masked_convolutional_network() -> None:
    torch.manual_seed(0)
    model = enlarge_weights(timm.create_model("resnet10t", num_classes=10))
    teacher = MaskedTeacher(model, image_size=(128, 128), mean=HALF, std=HALF)
    assert teacher.grid_size == 4
    assert_sees_the_classes(teacher, InversionConfig(**{**MASKED, "iterations": 80}))


def test_masked_in_bfloat16() -> None:
    assert_sees_the_classes(make_masked("swin_tiny_patch4_window7_224"), InversionConfig(**MASKED, dtype="bfloat16"))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_pixels_of_masked_patches_get_no_gradient_of_the_class(name: str) -> None:
    """Whatever the jitter: the mask moves with the picture to the pixel."""
    config = InversionConfig(**{**MASKED, "jitter": 0.25, "flip": 0.5}, tv_l2=0)
    run = Inversion(make_masked(name), TARGETS, config, seeds=SEEDS)
    for _ in range(13):
        run.step()
    assert run._jitter[12].any()
    assert run.images.grad is not None
    kept = run.teacher.fill_stopped(torch.ones_like(run.images), run.keep_indices).bool()
    assert (run.images.grad[~kept] == 0).all()
    assert (run.images.grad[kept] != 0).float().mean() > 0.9


def test_masked_patches_are_ranked_by_what_masking_them_would_change() -> None:
    """The product with the gradient, taken by hand a patch at a time."""
    teacher = make_masked("beit_base_patch16_224")
    images, keep = torch.randn(2, 3, 64, 64), torch.tensor([[0, 5, 6], [1, 7, 15]])
    still, targets = torch.zeros(2, 3, dtype=torch.int64), TARGETS[:2]
    logits, scores = teacher.look_and_rank(images, keep, still, "gradient_activation", targets)
    assert torch.allclose(logits, teacher(images, keep))
    for row in range(2):
        filled = teacher.fill_stopped(images[row : row + 1], keep[row : row + 1]).requires_grad_()
        teacher.model(filled)[0, targets[row]].backward()
        assert filled.grad is not None
        product = (filled.grad * filled).abs()[0].detach()
        for place, patch in enumerate(keep[row].tolist()):
            y, x = patch // 4 * 16, patch % 4 * 16
            expected = product[:, y : y + 16, x : x + 16].sum() / 256
            assert torch.allclose(scores[row, place], expected, rtol=1e-3)


def test_keeping_every_patch_is_the_dense_model() -> None:
    teacher = make_masked("swin_tiny_patch4_window7_224")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(teacher(images, torch.arange(64).expand(2, -1)), teacher.model(images))


def test_a_masked_teacher_says_at_once_that_it_saves_nothing() -> None:
    notice = "SwinTransformer reads whole images only: stopped patches are masked, which saves no time"
    assert make_masked("swin_tiny_patch4_window7_224").notice == notice
    assert make("vit_tiny_patch16_224").notice is None


def test_the_refusal_names_the_option() -> None:
    model = make_whole("swin_tiny_patch4_window7_224")
    normal: dict[str, Any] = {"image_size": (64, 64), "mean": HALF, "std": HALF}
    with pytest.raises(ModelError, match=r"SwinTransformer cannot be run on a token subset: .*; inversion\.mask_only"):
        make_teacher(model, InversionConfig(), **normal)
    assert isinstance(make_teacher(model, InversionConfig(mask_only=True), **normal), MaskedTeacher)
    assert isinstance(make_teacher(make_tiny_model(), InversionConfig(), **normal), Teacher)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("vit_tiny_patch16_224", {"ranking": "pool_attention"}, ModelError, "VisionTransformer .* by pool_attention"),
        ("vit_tiny_patch16_224", {"mask_only": True}, ConfigError, "mask_only is for a MaskedTeacher"),
        (
            "vit_small_patch16_18x2_224",
            {"patch_similarity": 1.0},
            ModelError,
            "patch_similarity .* ParallelThings",
        ),
        ("beit_base_patch16_224", {"ranking": "cls_attention"}, ModelError, "Beit cannot rank its patches by cls_"),
        ("beit_base_patch16_224", {"patch_similarity": 1.0}, ModelError, "patch_similarity .* Beit is masked"),
        ("beit_base_patch16_224", {"mask_only": False}, ConfigError, "Beit is masked, and mask_only is not set"),
    ],
)
def test_what_a_teacher_cannot_do_is_reported_before_the_first_step(
    name: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    masked = name.startswith("beit")
    config = InversionConfig(**{**SPARSE, "mask_only": masked, **changes})
    with pytest.raises(error, match=message):
        Inversion(make_masked(name) if masked else make(name), TARGETS, config, seeds=SEEDS)


def test_work_is_not_counted_where_nothing_is_saved() -> None:
    with pytest.raises(ModelError, match="work of Beit is not counted"):
        TeacherShape.of(make_masked("beit_base_patch16_224"))


@pytest.mark.parametrize(
    "name",
    [
        *("deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"),
        *("vit_base_patch16_siglip_224", "vit_base_patch16_gap_224", "beit_base_patch16_224"),
    ],
)
def test_the_pixels_of_a_family_do_not_depend_on_the_batch(name: str) -> None:
    """To the last bit, as long as each image keeps 16 tokens: on some processors fewer are rounded otherwise."""
    masked = name in WHOLE_IMAGES
    sizes: dict[str, Any] = {**TINY, "img_size": 64}
    torch.manual_seed(0)
    model = make_whole(name) if masked else enlarge_weights(timm.create_model(name, **sizes))
    config = InversionConfig(iterations=12, lr=0.1, stop_steps=[4, 8], stop_fractions=[0.3, 0.3], mask_only=masked)
    teacher = make_teacher(model, config, image_size=(64, 64), mean=HALF, std=HALF)
    whole = invert(teacher, TARGETS, config, seeds=SEEDS).images
    for rows in (slice(0, 1), slice(1, 3), slice(2, 5)):
        assert torch.equal(invert(teacher, TARGETS[rows], config, seeds=SEEDS[rows]).images, whole[rows])
