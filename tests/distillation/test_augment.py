"""Views: what each change does, which images take it, and that teacher and student see the same one."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from pipeline.distillation import AugmentConfig, DistillationConfig, StudentConfig, augment
from pipeline.distillation.answers import Answers
from pipeline.distillation.augmented import AugmentedImages, Augmenter
from pipeline.distillation.batches import DistillationBatch, Images, to_batch
from pipeline.distillation.descent import Group
from pipeline.distillation.images import MemoryImages
from pipeline.distillation.loop import StudentTrainer
from pipeline.distillation.losses import hard_label_loss
from pipeline.distillation.order import Share
from pipeline.distillation.plan import plan_distillation
from pipeline.distillation.students import build_student
from pipeline.errors import ConfigError
from pipeline.models import LoadedModel, ModelConfig, load_model, save_model
from pipeline.vit.subset import SubsetViT
from pipeline.workers import WorkersConfig
from tests.conftest import make_tiny_model
from tests.distillation.conftest import KEPT, NUM_PATCHES, kept_patches, make_images

CPU = torch.device("cpu")
NOTHING = AugmentConfig(degrees=0, translate=0, scale=0, blur=0, contrast=0, noise=0, cutmix=0, erase=0)
EVERYTHING = AugmentConfig(flip=0.5, brightness=0.2, saturation=0.2, mixup=0.5)
STRENGTHS = {
    "degrees": 90.0,
    "translate": 0.5,
    "scale": 0.5,
    "flip": 1.0,
    "blur": 2.0,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "noise": 0.5,
    "mixup": 1.0,
    "cutmix": 1.0,
    "erase": 1.0,
}
UNUSED: dict[str, Any] = {
    "teacher": ModelConfig(name="unused"),
    "student": StudentConfig(depth_pruned=[0]),
    "images": "unused",
    "output": "unused",
}
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def make_augmenter(config: AugmentConfig, *, seed: int = 0, reads_kept: bool = True) -> Augmenter:
    return Augmenter(config, seed, MEAN, STD, (4, 4), reads_kept)


def make_batch(count: int = 8, *, ragged: bool = False) -> DistillationBatch:
    """Pixels that are all in range."""
    images = make_images(count, ragged=ragged)
    pixels = np.random.default_rng(1).random(images.pixels.shape, np.float32)
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (MEAN, STD))
    return to_batch(replace(images, pixels=(pixels - mean) / std), CPU, np.arange(count))


def changed(before: DistillationBatch, after: DistillationBatch) -> list[bool]:
    return (before.pixels != after.pixels).flatten(1).any(dim=1).tolist()


def patches_of(pixels: Tensor) -> Tensor:
    """Pixels [B, C, 32, 32] as patches [B, 16, C × 64]."""
    cut = pixels.unfold(2, 8, 8).unfold(3, 8, 8)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), NUM_PATCHES, -1)


def test_without_strengths_an_image_stays_as_it_is() -> None:
    for ragged in (False, True):
        batch = make_batch(ragged=ragged)
        view = make_augmenter(NOTHING)(batch, 0)
        assert torch.equal(view.pixels, batch.pixels)
        assert torch.equal(view.keep_indices, batch.keep_indices)


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_change_alone_changes_whole_images(name: str) -> None:
    batch = make_batch()
    view = make_augmenter(replace(NOTHING, **{name: STRENGTHS[name]}))(batch, 0)
    assert view.pixels.shape == batch.pixels.shape
    assert view.pixels.dtype == torch.float32
    # A block of CutMix may be empty.
    assert sum(changed(batch, view)) >= 7


def test_pixels_stay_in_range() -> None:
    for ragged in (False, True):
        view = make_augmenter(replace(EVERYTHING, **STRENGTHS))(make_batch(ragged=ragged), 0)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
        pixels = view.pixels * std + mean
        assert pixels.min() >= -1e-5
        assert pixels.max() <= 1 + 1e-5


def test_views_repeat_for_a_seed_and_epoch_and_differ_between_them() -> None:
    batch = make_batch()
    first = make_augmenter(EVERYTHING)(batch, 3)
    assert torch.equal(make_augmenter(EVERYTHING)(batch, 3).pixels, first.pixels)
    for other in (make_augmenter(EVERYTHING)(batch, 4), make_augmenter(EVERYTHING, seed=1)(batch, 3)):
        assert all(changed(first, other))


def test_views_leave_the_random_numbers_of_the_training_alone() -> None:
    before = torch.get_rng_state()
    make_augmenter(EVERYTHING)(make_batch(ragged=True), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_an_image_does_not_share_with_others_does_not_depend_on_its_batch() -> None:
    """So two workers show the views that one does."""
    config = replace(EVERYTHING, mixup=0.0, cutmix=0.0)
    images = make_images(6)
    together = make_augmenter(config)(to_batch(images, CPU), 0)
    rows = np.array([4, 1])
    share = make_augmenter(config)(to_batch(images.take(rows), CPU), 0)
    torch.testing.assert_close(share.pixels, together.pixels[rows])


@pytest.mark.parametrize("ragged", [False, True])
def test_any_number_of_workers_shows_the_views_that_one_does(ragged: bool) -> None:
    """Also where images are mixed with others: those of another worker's share are among them."""
    augmenter = make_augmenter(replace(EVERYTHING, mixup=0.7, cutmix=0.7))
    images = make_images(43, ragged=ragged)

    def views(world_size: int) -> dict[str, tuple[Tensor, list[int], int]]:
        found = {}
        for rank in range(world_size):
            share = MemoryImages(images, Share(batch_size=22, seed=0, rank=rank, world_size=world_size))
            for batch in AugmentedImages(share, augmenter, notes=False).batches(1, CPU):
                for row, name in enumerate(batch.image_ids):
                    kept = batch.keep_indices[row, : int(batch.num_kept[row])].tolist()
                    found[name] = batch.pixels[row], kept, int(batch.labels[row])
        return found

    one = views(1)
    assert one.keys() == set(images.image_ids)
    for world_size in (2, 3, 30):
        several = views(world_size)
        assert several.keys() == one.keys()
        for name, (pixels, *others) in one.items():
            torch.testing.assert_close(several[name][0], pixels)
            assert [*several[name][1:]] == others


@pytest.mark.parametrize(("config", "times"), [(replace(EVERYTHING, mixup=0.0, cutmix=0.0), 1), (EVERYTHING, 3)])
def test_a_worker_reads_and_changes_its_own_images_and_those_that_are_mixed_into_them(
    config: AugmentConfig, times: int
) -> None:
    images, read = make_images(64), list[int]()

    class Counted(MemoryImages):
        def pixels(self, rows: Tensor) -> Tensor:
            read.append(len(rows))
            return super().pixels(rows)

    share = Counted(images, Share(batch_size=32, seed=0, rank=1, world_size=8))
    batches = list(AugmentedImages(share, make_augmenter(config), notes=False).batches(0, CPU))
    assert [len(batch.pixels) for batch in batches] == [4, 4]
    assert all(4 <= number <= 4 * times for number in read)
    assert (max(read) == 4) is (times == 1)


def test_an_image_moves_by_what_is_said() -> None:
    pixels = torch.zeros(2, 1, 8, 8)
    pixels[:, 0, 2, 3] = 1
    zero, one = torch.zeros(2), torch.ones(2)
    down, right = torch.tensor([0.25, 0.0]), torch.tensor([0.0, 0.25])
    shifted = augment.move(pixels, angle=zero, down=down, right=right, size=one)
    assert [image[0].round().nonzero().tolist() for image in shifted] == [[[4, 3]], [[2, 5]]]
    turned = augment.move(pixels, angle=torch.tensor([90.0, 180.0]), down=zero, right=zero, size=one)
    torch.testing.assert_close(turned[1], pixels[1].flip(1, 2))
    assert any(torch.allclose(turned[0], pixels[0].rot90(times, (1, 2)), atol=1e-5) for times in (1, 3))


def test_a_blur_is_that_of_torchvision() -> None:
    pixels = torch.rand(2, 3, 16, 16)
    sigma = torch.tensor([0.8, 0.3])
    blurred = augment.blur(pixels, sigma, largest=1.0)
    for row, value in enumerate(sigma.tolist()):
        expected = transforms.gaussian_blur(pixels[row], [7, 7], [value, value])
        # torchvision reflects at the border.
        torch.testing.assert_close(blurred[row, :, 3:-3, 3:-3], expected[:, 3:-3, 3:-3])


def test_colors_change_as_those_of_torchvision() -> None:
    pixels = 0.3 + 0.4 * torch.rand(1, 3, 8, 8)
    one, factor = torch.ones(1), torch.tensor([0.8])
    for name in ("brightness", "contrast", "saturation"):
        factors = {"brightness": one, "contrast": one, "saturation": one, name: factor}
        expected = getattr(transforms, f"adjust_{name}")(pixels, 0.8)
        torch.testing.assert_close(augment.recolor(pixels, **factors), expected)


def test_cutmix_pastes_patches_of_one_other_image() -> None:
    batch = make_batch()
    view = make_augmenter(replace(NOTHING, cutmix=1.0))(batch, 0)
    before, after = patches_of(batch.pixels), patches_of(view.pixels)
    # Which image each patch is of: bool [B, 16, images]. Patches stay where they were.
    origin = (after.unsqueeze(2) == before.transpose(0, 1).unsqueeze(0)).all(dim=3)
    assert (origin.sum(dim=2) == 1).all()
    sources = origin.any(dim=1).sum(dim=1)
    assert sources.max() == 2


def test_partners_are_others_of_the_same_group() -> None:
    groups = torch.tensor([1, 2, 1, 2, 3, 1])
    partners = augment.find_partners(torch.rand(6), groups)
    assert sorted(partners.tolist()) == list(range(6))
    assert torch.equal(groups[partners], groups)
    assert [row for row in range(6) if partners[row] == row] == [4]


def test_on_kept_patches_cutmix_adds_those_of_others() -> None:
    batch = make_batch(16, ragged=True)
    view = make_augmenter(replace(NOTHING, cutmix=1.0))(batch, 0)
    before, after = patches_of(batch.pixels), patches_of(view.pixels)
    for row in range(16):
        if KEPT[row % len(KEPT)] == NUM_PATCHES:
            continue
        own, count = set(kept_patches(row)), int(view.num_kept[row])
        kept = view.keep_indices[row, :count].tolist()
        assert kept == sorted(set(kept))
        assert own < set(kept)
        for patch in kept:
            peers = [row] if patch in own else [r for r in range(16) if r != row and patch in kept_patches(r)]
            assert any(torch.equal(after[row, patch], before[peer, patch]) for peer in peers)
    # Images that kept equally many are still read together.
    counts = {kept: {int(view.num_kept[r]) for r in range(16) if KEPT[r % 4] == kept} for kept in KEPT}
    assert all(len(found) == 1 for found in counts.values())


def test_erasing_makes_some_patches_of_whole_images_one_gray() -> None:
    batch = make_batch(32)
    view = make_augmenter(replace(NOTHING, erase=1.0))(batch, 0)
    before, after = patches_of(batch.pixels), patches_of(view.pixels)
    erased = (before != after).any(dim=2)
    assert erased.any(dim=0).all()
    assert erased.any(dim=1).sum() > 16
    colors = patches_of(view.pixels * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1))
    for image, chosen in zip(colors, erased, strict=True):
        if chosen.any():
            assert image[chosen].max() - image[chosen].min() < 1e-5
    blocks = [chosen.nonzero().flatten() for chosen in erased]
    spread = [len({int(i) // 4 for i in b}) * len({int(i) % 4 for i in b}) == len(b) for b in blocks if len(b) > 2]
    assert 0 < sum(spread) < len(spread)


def test_erasing_reads_images_on_kept_patches_as_whole_ones_over_gray() -> None:
    batch = make_batch(16, ragged=True)
    view = make_augmenter(replace(NOTHING, erase=1.0))(batch, 0)
    assert view.num_kept.tolist() == [NUM_PATCHES] * 16
    before, after = patches_of(batch.pixels), patches_of(view.pixels)
    for row in range(16):
        kept = sorted(kept_patches(row))
        if len(kept) < NUM_PATCHES:
            others = [patch for patch in range(NUM_PATCHES) if patch not in kept]
            assert torch.equal(after[row, kept], before[row, kept])
            assert (after[row, others] == after[row, others[0]]).all()
    some = make_augmenter(replace(NOTHING, erase=0.5))(batch, 0)
    assert 0 < int((some.num_kept == batch.num_kept).sum()) < 16
    # What is whole then is moved as well.
    turned = make_augmenter(replace(NOTHING, erase=1.0, degrees=90.0))(batch, 0)
    assert not torch.equal(turned.pixels, view.pixels)


def test_without_erasing_views_are_those_of_before_it_was_known() -> None:
    """The sum was recorded before; it rounds differently from processor to processor."""
    view = make_augmenter(replace(EVERYTHING, erase=0.0))(make_batch(16, ragged=True), 3)
    assert view.keep_indices.sum() == 1277
    assert float(view.pixels.double().sum()) == pytest.approx(16625.953, rel=1e-4)


def test_erasing_for_a_teacher_without_patches_takes_blocks() -> None:
    batch = make_batch()
    view = Augmenter(replace(NOTHING, erase=1.0), 0, MEAN, STD, (32, 32), False)(batch, 0)
    for erased in (batch.pixels != view.pixels).any(dim=1):
        rows, columns = erased.any(dim=1).sum(), erased.any(dim=0).sum()
        assert erased.sum() == rows * columns


def test_images_on_kept_patches_are_not_moved_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    moving = replace(NOTHING, degrees=20.0, translate=0.2, flip=1.0, blur=1.0, mixup=1.0)
    images = make_images(8)
    batch = to_batch(images, CPU)
    whole = [KEPT[row % len(KEPT)] == NUM_PATCHES for row in range(8)]
    assert changed(batch, make_augmenter(moving)(batch, 0)) == whole
    shown = AugmentedImages(MemoryImages(images, Share(batch_size=4, seed=0)), make_augmenter(moving), notes=True)
    logger = logging.getLogger("sparse_inversion")
    logger.addHandler(caplog.handler)
    for epoch in (0, 1):
        list(shown.batches(epoch, CPU))
    logger.removeHandler(caplog.handler)
    assert caplog.messages == ["augment: images with stopped patches do not get degrees, translate, flip, blur, mixup"]


def test_filled_images_move_where_nobody_reads_kept_patches() -> None:
    batch = make_batch(ragged=True)
    view = make_augmenter(replace(NOTHING, flip=1.0), reads_kept=False)(batch, 0)
    assert torch.equal(view.pixels, batch.pixels.flip(3))


def test_images_of_a_teacher_that_reads_whole_ones_are_shown_too(whole_folder: Path) -> None:
    """Stopped patches are mean color there, and move with the others."""
    loaded = load_model(ModelConfig(name=f"local-dir:{whole_folder}"))
    pixels = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
    kept = np.array([[0, 1], [2, 3], [1, 0], [0, 0]])
    images = Images(pixels, np.arange(4), kept, np.array([2, 2, 1, 1]), list("abcd"))
    batch = to_batch(images, CPU)
    view = Augmenter.of(EVERYTHING, loaded, seed=0, reads_kept=False)(batch, 0)
    assert all(changed(batch, view))
    assert torch.equal(view.keep_indices, batch.keep_indices)


def test_an_empty_share_stays_empty() -> None:
    empty = to_batch(make_images(4).take(np.arange(0)), CPU)
    assert not len(make_augmenter(EVERYTHING)(empty, 0).pixels)


class Recorder(SubsetViT):
    """A teacher that remembers what it was shown."""

    def forward_tokens(self, images: Tensor, keep_indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.shown = images.clone()
        return super().forward_tokens(images, keep_indices)


def make_trainer(
    teacher: LoadedModel, output: Path, images: Images, *, augmented: AugmentConfig, **settings: Any
) -> tuple[StudentTrainer, Recorder]:
    config = DistillationConfig(
        teacher=ModelConfig(name="unused"),
        student=StudentConfig(depth_pruned=[0]),
        images="unused",
        output=str(output),
        augment=augmented,
        **{"epochs": 2, "batch_size": 6, "token_weight": 1.0, **settings},
    )
    recorder = Recorder(teacher.model)
    answers = Answers(recorder, with_tokens=config.token_weight > 0, dtype=torch.float32)
    memory = MemoryImages(images, Share(batch_size=config.batch_size, seed=config.seed))
    answers.keep(images, CPU, batch_size=4, rank=0, world_size=1)
    augmenter = Augmenter.of(augmented, teacher, seed=config.seed, reads_kept=True)
    shown = AugmentedImages(memory, augmenter, notes=False)
    student = build_student(config.student, teacher, seed=config.seed)
    labeled = MemoryImages(images, Share(batch_size=6, seed=0))
    trainer = StudentTrainer(
        config=config,
        digest="d" * 64,
        student=student,
        answers=answers,
        images=shown,
        labeled=labeled,
        group=Group(0, 1, CPU),
    )
    return trainer, recorder


@pytest.mark.parametrize("ragged", [False, True])
def test_teacher_and_student_see_the_same_view_and_no_kept_answer(
    teacher: LoadedModel, tmp_path: Path, ragged: bool
) -> None:
    images = make_images(6, ragged=ragged)
    trainer, recorder = make_trainer(teacher, tmp_path, images, augmented=EVERYTHING)
    (batch,) = trainer.images.batches(0, CPU)
    assert batch.rows is None
    rows = [images.image_ids.index(name) for name in batch.image_ids]
    assert sorted(rows) == list(range(6))
    assert any(changed(replace(batch, pixels=torch.from_numpy(images.pixels[rows])), batch))
    recorder.shown = torch.zeros(0)
    terms = trainer.objective.losses(batch)
    # The last group of images that keep equally many is the one that was shown last.
    assert torch.equal(recorder.shown, batch.pixels[batch.num_kept == batch.num_kept.max()])
    assert torch.isfinite(terms["tokens"]).all()
    logits, _ = trainer.objective.read(batch)
    target, _ = trainer.objective.answers(batch)
    expected = F.kl_div((logits / 4).log_softmax(1), (target / 4).log_softmax(1), reduction="none", log_target=True)
    torch.testing.assert_close(terms["kl"], 16 * expected.sum(dim=1))


def test_a_training_on_views_ends_and_repeats_exactly(teacher: LoadedModel, tmp_path: Path) -> None:
    images = make_images(11)
    digests = [make_trainer(teacher, tmp_path / name, images, augmented=EVERYTHING)[0].train() for name in ("a", "b")]
    assert digests[0] == digests[1]
    other = make_trainer(teacher, tmp_path / "c", images, augmented=replace(EVERYTHING, noise=0.3))[0].train()
    assert other != digests[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, r"augment.flip must lie in \[0, 1\], not 1.5"),
        ({"scale": 1.0}, r"augment.scale must lie in \[0, 1\), not 1.0"),
        ({"noise": -0.1}, "augment.noise must not be negative, not -0.1"),
        ({"degrees": float("nan")}, "degrees must be finite, not nan"),
    ],
)
def test_strengths_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**settings)


def test_saturation_of_images_without_three_channels_is_refused(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(10)]
    save_model(make_tiny_model(in_chans=1), tmp_path / "gray", class_names=names, mean=(0.5,), std=(0.5,))
    changes = {"teacher": ModelConfig(name=f"local-dir:{tmp_path / 'gray'}"), "output": str(tmp_path / "out")}
    changes |= {"workers": WorkersConfig(size=0)}
    views = AugmentConfig(saturation=0.2)
    views.check_channels("augment", 3)
    AugmentConfig().check_channels("augment", 1)
    with pytest.raises(
        ConfigError, match=r"^augment\.saturation is 0\.2, but the teacher's images have 1 channels, not"
    ):
        views.check_channels("augment", 1)
    with pytest.raises(ConfigError, match=r"^augment\.saturation is 0\.2"):
        plan_distillation(DistillationConfig(**(UNUSED | changes), augment=views))


def test_a_label_weight_is_refused_where_every_image_is_a_mixture() -> None:
    settings: dict[str, Any] = {**UNUSED, "label_weight": 1.0}
    with pytest.raises(ConfigError, match=r"but augment mixes every image with others \(mixup 0, cutmix 1\)"):
        DistillationConfig(**settings, augment=AugmentConfig(cutmix=1.0))
    DistillationConfig(**settings, augment=AugmentConfig(cutmix=0.9))


@pytest.mark.parametrize("ragged", [False, True])
def test_mixtures_have_no_label_and_others_keep_theirs(ragged: bool) -> None:
    batch = make_batch(16, ragged=ragged)
    view = make_augmenter(replace(NOTHING, cutmix=0.5))(batch, 0)
    unknown = view.labels == -1
    assert 0 < unknown.sum() < 16
    assert torch.equal(view.labels[~unknown], batch.labels[~unknown])
    # A block may be empty, so a mixture may look like the image; but no other image changes.
    assert not any(mixed and not gone for mixed, gone in zip(changed(batch, view), unknown.tolist(), strict=True))
    assert hard_label_loss(torch.randn(16, 10), view.labels)[unknown].tolist() == [0.0] * int(unknown.sum())
