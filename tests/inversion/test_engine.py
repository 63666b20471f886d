from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError, NonFiniteError
from pipeline.inversion import (
    AdaptiveEnd,
    Disagreement,
    FeaturePrior,
    Inversion,
    InversionConfig,
    InversionResult,
    Teacher,
    Term,
    ViewOutput,
    build_terms,
    invert,
    score,
    start_images,
)
from pipeline.inversion.optimizer import ImageOptimizer
from pipeline.vit.subset import SubsetViT
from tests.conftest import HALF, make_tiny_model

SPARSE: dict[str, Any] = {"iterations": 40, "lr": 0.1, "stop_steps": [5, 10], "stop_fractions": [0.5, 0.25]}
DENSE: dict[str, Any] = {"iterations": 40, "lr": 0.1, "stop_steps": [], "stop_fractions": []}
# An untrained teacher sees another class in each shifted view: what it is to recognise is optimized unshifted.
STILL: dict[str, Any] = {"jitter": 0.0, "flip": 0.0}
TARGETS = torch.tensor([3, 1, 4, 1, 5])
SEEDS = [10, 11, 12, 13, 14]


@pytest.mark.parametrize("schedule", [SPARSE, DENSE])
def test_the_teacher_comes_to_see_the_class(tiny_teacher: Teacher, schedule: dict[str, Any]) -> None:
    result = invert(tiny_teacher, TARGETS, InversionConfig(**schedule, **STILL), seeds=SEEDS)
    _, before, _ = score(
        tiny_teacher, tiny_teacher.to_uint8(start_images(tiny_teacher, SEEDS)), result.keep_indices, TARGETS
    )
    loss, confidence, prediction = score(
        tiny_teacher, tiny_teacher.to_uint8(result.images), result.keep_indices, TARGETS
    )
    assert prediction.tolist() == TARGETS.tolist()
    assert (confidence > before).all()
    assert torch.allclose(loss, -confidence.log(), atol=1e-5)
    assert result.losses["class_loss"].shape == (40,)


def test_stopped_patches_leave_the_run(tiny_teacher: Teacher) -> None:
    """The input of the teacher shrinks with the schedule: a stopped patch costs no forward and no backward."""
    seen: list[int] = []
    tiny_teacher.model.blocks[0].register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    result = invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    tokens = [1 + 16] * 5 + [1 + 8] * 5 + [1 + 6] * 30
    assert seen == tokens
    assert result.keep_indices.shape == (5, 6)


def test_only_the_total_variation_touches_stopped_patches(tiny_teacher: Teacher) -> None:
    run = Inversion(tiny_teacher, TARGETS, InversionConfig(**SPARSE, tv_l2=0), seeds=SEEDS)
    for _ in range(12):
        run.step()
    assert run.images.grad is not None
    kept = tiny_teacher.fill_stopped(torch.ones_like(run.images), run.keep_indices).bool()
    # The jitter of a step shifts the view by less than half a patch or reads its neighbor: look at a still view.
    run._jitter[12] = 0
    run.step()
    assert (run.images.grad[~kept] == 0).all()
    assert (run.images.grad[kept] != 0).any()


def test_weights_stay_frozen(tiny_teacher: Teacher) -> None:
    before = {name: value.clone() for name, value in tiny_teacher.state_dict().items()}
    invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    assert all(parameter.grad is None for parameter in tiny_teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in tiny_teacher.state_dict().items())


def test_same_seeds_same_bits(tiny_teacher: Teacher) -> None:
    first, second = (invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS) for _ in range(2))
    assert torch.equal(first.images, second.images)


@pytest.mark.parametrize("basis", ["pixels", "cosine"])
@pytest.mark.parametrize("size", [32, 31])
@pytest.mark.parametrize("threads", [1, 2])
def test_adam_moves_an_image_alike_in_every_batch(basis: Any, size: int, threads: int) -> None:
    """Updates are equal to the last bit, also where an image's pixels are no multiple of what a CPU takes at once."""
    start, gradient = torch.randn(2, 5, 3, size, size, generator=torch.Generator().manual_seed(0))
    teacher = Teacher(make_tiny_model(), mean=HALF, std=HALF)

    def move(rows: slice) -> torch.Tensor:
        optimizer = ImageOptimizer(start[rows].clone(), teacher, InversionConfig(basis=basis))
        for _ in range(5):
            optimizer.images.grad = gradient[rows].clone()
            optimizer.step()
        return optimizer.images.detach()

    torch.set_num_threads(threads)
    try:
        assert torch.equal(move(slice(5)), torch.cat([move(slice(1)), move(slice(1, 3)), move(slice(3, 5))]))
    finally:
        torch.set_num_threads(1)


def assert_alike(teacher: Teacher, first: torch.Tensor, second: torch.Tensor) -> None:
    """Equal to two of 256 gray levels at 99.9% of the pixels."""
    difference = ((first - second) * teacher.std).abs()
    assert (difference <= 1 / 128).float().mean() >= 0.999


@pytest.fixture(scope="module")
def unsplit() -> Callable[[int], tuple[dict[str, Any], InversionResult]]:
    """Settings and result of a run of so many iterations with the whole batch in one forward, made once."""

    def run(iterations: int) -> tuple[dict[str, Any], InversionResult]:
        config: dict[str, Any] = {**SPARSE, "iterations": iterations, "lr": 0.25}
        return config, invert(fine_teacher(), TARGETS, InversionConfig(**config), seeds=SEEDS)

    return cache(run)


def fine_teacher() -> Teacher:
    """A teacher of 64 patches, of which `SPARSE` leaves 24: fewer than 16 tokens are rounded differently."""
    return Teacher(make_tiny_model(patch_size=4), mean=HALF, std=HALF)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("iterations", [40, 200])
def test_another_split_makes_the_same_images(
    unsplit: Callable[[int], tuple[dict[str, Any], InversionResult]],
    micro_batch: int,
    iterations: int,
) -> None:
    config, whole = unsplit(iterations)
    split = invert(fine_teacher(), TARGETS, InversionConfig(**config, micro_batch=micro_batch), seeds=SEEDS)
    assert split.micro_batch == micro_batch
    assert torch.equal(whole.keep_indices, split.keep_indices)
    assert torch.equal(whole.images, split.images)


def test_the_published_run_may_be_split_too(tiny_teacher: Teacher) -> None:
    config = {**SPARSE, "scope": "published", "tv_l2": 1e-2}
    whole = invert(tiny_teacher, TARGETS, InversionConfig(**config), seeds=SEEDS)
    split = invert(tiny_teacher, TARGETS, InversionConfig(**config, micro_batch=2), seeds=SEEDS)
    assert torch.equal(whole.keep_indices, split.keep_indices)
    assert_alike(tiny_teacher, whole.images, split.images)


def test_an_image_does_not_depend_on_its_neighbors(tiny_teacher: Teacher) -> None:
    config = InversionConfig(**SPARSE, tv_l2=1e-2)
    together = invert(tiny_teacher, TARGETS, config, seeds=SEEDS)
    alone = invert(tiny_teacher, TARGETS[2:3], config, seeds=SEEDS[2:3])
    assert torch.equal(together.keep_indices[2:3], alone.keep_indices)
    assert_alike(tiny_teacher, together.images[2:3], alone.images)


def test_with_the_published_scope_it_does(tiny_teacher: Teacher) -> None:
    config = InversionConfig(**SPARSE, tv_l2=1e-2, scope="published")
    together = invert(tiny_teacher, TARGETS, config, seeds=SEEDS)
    alone = invert(tiny_teacher, TARGETS[:1], config, seeds=SEEDS[:1])
    assert ((together.images[:1] - alone.images).abs() > 0.02).float().mean() > 0.01


class ShortOfMemory(nn.Module):
    """Stands in the teacher's first block and asks for more memory than there is, above a number of tokens in all."""

    def __init__(self, block: nn.Module, max_tokens: int) -> None:
        super().__init__()
        self.block, self.max_tokens = block, max_tokens

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[0] * tokens.shape[1] > self.max_tokens:
            # No machine has 2^60 bytes: PyTorch's own error.
            torch.empty(2**60, dtype=torch.uint8)
        return self.block(tokens)


def test_out_of_memory_splits_the_batch_and_says_so(tiny_teacher: Teacher) -> None:
    whole = invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    tiny_teacher.model.blocks[0] = ShortOfMemory(tiny_teacher.model.blocks[0], max_tokens=34)
    split = invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    assert split.micro_batch == 2
    assert split.halvings[:2] == [(0, 3), (0, 2)]
    assert whole.halvings == []
    assert torch.equal(whole.keep_indices, split.keep_indices)
    assert_alike(tiny_teacher, whole.images, split.images)


class CountImages(nn.Module):
    """Stands in the teacher's first block and notes how many images pass, and with how many tokens."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.seen: list[tuple[int, int]] = []

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen.append((tokens.shape[0], tokens.shape[1]))
        return self.block(tokens)


def test_as_patches_are_stopped_more_images_go_together(tiny_teacher: Teacher) -> None:
    block = CountImages(tiny_teacher.model.blocks[0])
    tiny_teacher.model.blocks[0] = block
    config = InversionConfig(
        iterations=3, stop_steps=[1, 2], stop_fractions=[0.5, 0.5], micro_batch=2, dtype="bfloat16"
    )
    run = Inversion(tiny_teacher, torch.arange(8), config, seeds=range(8))
    counted = run.teacher.model.blocks[0]
    while not run.finished:
        run.step()
    assert counted.seen == [(2, 17)] * 4 + [(2, 9), (3, 9), (3, 9)] + [(4, 5)] * 2


def test_out_of_memory_at_one_image_is_an_error(tiny_teacher: Teacher) -> None:
    tiny_teacher.model.blocks[0] = ShortOfMemory(tiny_teacher.model.blocks[0], max_tokens=0)
    with pytest.raises(torch.OutOfMemoryError, match="you tried to allocate 1152921504606846976 bytes"):
        invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)


class TurnsNaN(nn.Module):
    """Stands in the teacher's first block and multiplies by NaN from a call on."""

    def __init__(self, block: nn.Module, first_call: int) -> None:
        super().__init__()
        self.block, self.first_call, self.calls = block, first_call, 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        bad = self.calls >= self.first_call
        self.calls += 1
        return self.block(tokens) * (float("nan") if bad else 1)


@pytest.mark.parametrize("step", [0, 7, 33])
def test_nan_is_reported_with_its_first_step_and_term(tiny_teacher: Teacher, step: int) -> None:
    tiny_teacher.model.blocks[0] = TurnsNaN(tiny_teacher.model.blocks[0], step)
    with pytest.raises(NonFiniteError, match=f"class_loss is not finite at step {step}") as caught:
        invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    assert (caught.value.step, caught.value.term) == (step, "class_loss")


def test_pixels_that_turn_nan_in_the_last_step_are_reported(tiny_teacher: Teacher) -> None:
    run = Inversion(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    run.step()
    with torch.no_grad():
        run.images[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="pixels"):
        run.result()


def test_recorded_jitter_is_used_as_given(tiny_teacher: Teacher) -> None:
    config = InversionConfig(**DENSE, flip=0.0, jitter=0.0)
    still = torch.zeros(40, 5, 3, dtype=torch.int64)
    given = invert(tiny_teacher, TARGETS, InversionConfig(**DENSE), seeds=SEEDS, jitter=still)
    assert torch.equal(given.images, invert(tiny_teacher, TARGETS, config, seeds=SEEDS).images)


def test_ranking_and_stopping_steps_see_the_image_as_it_is(tiny_teacher: Teacher) -> None:
    run = Inversion(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    assert (run._jitter[[4, 5, 9, 10]] == 0).all()
    assert (run._jitter[[3, 6, 8, 11]] != 0).any()


def test_patch_similarity_raises_the_entropy(tiny_teacher: Teacher) -> None:
    plain = invert(tiny_teacher, TARGETS, InversionConfig(**DENSE, patch_similarity=1e-9), seeds=SEEDS)
    driven = invert(tiny_teacher, TARGETS, InversionConfig(**DENSE, patch_similarity=5.0), seeds=SEEDS)
    assert driven.losses["patch_similarity"][-1] < plain.losses["patch_similarity"][-1] - 0.05


@pytest.mark.parametrize("ranking", ["cls_attention", "attention_received", "gradient_activation"])
def test_patch_similarity_sees_each_block_once_where_patches_are_ranked(tiny_teacher: Teacher, ranking: str) -> None:
    """Ranking runs attention once more; the term and its gradient are those of a step that does not rank."""
    config: dict[str, Any] = {**STILL, "iterations": 5, "lr": 0.1, "patch_similarity": 1.0, "ranking": ranking}
    values = []
    for stops in ({"stop_steps": [1], "stop_fractions": [0.5]}, {"stop_steps": [], "stop_fractions": []}):
        run = Inversion(tiny_teacher, TARGETS, InversionConfig(**{**config, **stops}), seeds=SEEDS)
        run.step()
        values.append((run.result().losses["patch_similarity"], run.images.grad))
        run.step()
    assert torch.allclose(values[0][0], values[1][0], atol=1e-6)
    assert values[0][1] is not None
    assert values[1][1] is not None
    assert torch.allclose(values[0][1], values[1][1], atol=1e-6)


def make_prior() -> FeaturePrior:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None))
    with torch.no_grad():
        network(0.3 + 0.1 * torch.randn(16, 3, 32, 32))
    return FeaturePrior(network)


def test_feature_prior_draws_the_images_to_the_statistics(tiny_teacher: Teacher) -> None:
    prior, values = make_prior(), []
    for weight in (1e-9, 10.0):
        config = InversionConfig(**DENSE, **STILL, tv_l2=0, feature_prior=weight)
        result = invert(tiny_teacher, TARGETS, config, seeds=SEEDS, terms=build_terms(config, feature_prior=prior))
        values.append(result.losses["feature_prior"][-1])
    assert values[1] < 0.5 * values[0]


def test_networks_that_read_whole_images_keep_the_split(tiny_teacher: Teacher) -> None:
    config = InversionConfig(iterations=3, stop_steps=[1], stop_fractions=[0.5], micro_batch=2, feature_prior=1.0)
    run = Inversion(
        tiny_teacher, torch.arange(8), config, seeds=range(8), terms=build_terms(config, feature_prior=make_prior())
    )
    while not run.finished:
        run.step()
    assert run.micro_batch == 2


class AStudent(nn.Module):
    """Another tiny ViT, or a CNN, as a reader of the teacher's images."""

    def __init__(self, *, reads_kept: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        # Large weights: small ones answer every image alike.
        convolution = nn.Conv2d(3, 10, 8, stride=8).requires_grad_(False)
        convolution.weight.normal_(std=0.5)
        self.vit = SubsetViT(make_tiny_model(seed=5)) if reads_kept else None
        self.cnn = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: torch.Tensor, keep_indices: torch.Tensor) -> torch.Tensor:
        return self.cnn(images) if self.vit is None else self.vit(images, keep_indices)


@pytest.mark.parametrize("reads_kept", [True, False])
def test_the_adversarial_term_drives_teacher_and_student_apart(tiny_teacher: Teacher, reads_kept: bool) -> None:
    disagreement = Disagreement(AStudent(reads_kept=reads_kept), reads_kept=reads_kept, temperature=1.0)
    values = []
    for weight in (1e-9, 20.0):
        config = InversionConfig(**SPARSE, **STILL, adversarial=weight)
        terms = build_terms(config, disagreement=disagreement)
        result = invert(tiny_teacher, TARGETS, config, seeds=SEEDS, terms=terms)
        values.append(-result.losses["adversarial"][-1])
    assert values[1] > values[0] + 0.05
    assert all(parameter.grad is None for parameter in disagreement.student.parameters())


@pytest.mark.parametrize("reads_kept", [True, False])
def test_terms_of_what_is_seen_leave_stopped_patches_alone(tiny_teacher: Teacher, reads_kept: bool) -> None:
    """The adversarial term and the patch similarity together, after stops; nothing acts on all pixels."""
    disagreement = Disagreement(AStudent(reads_kept=reads_kept), reads_kept=reads_kept)
    config = InversionConfig(
        **SPARSE, **STILL, tv_l2=0.0, class_weight=0.0, adversarial=1.0, patch_similarity=1.0, micro_batch=2
    )
    run = Inversion(tiny_teacher, TARGETS, config, seeds=SEEDS, terms=build_terms(config, disagreement=disagreement))
    for _ in range(12):
        run.step()
    assert run.images.grad is not None
    kept = tiny_teacher.fill_stopped(torch.ones_like(run.images), run.keep_indices).bool()
    assert (run.images.grad[~kept] == 0).all()
    assert (run.images.grad[kept] != 0).float().mean() > 0.9


def test_a_published_feature_prior_cannot_be_split(tiny_teacher: Teacher) -> None:
    prior = FeaturePrior(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), batch_statistics=True)
    config = InversionConfig(**DENSE, feature_prior=1.0, scope="published", micro_batch=2)
    with pytest.raises(ConfigError, match="micro_batch 2"):
        Inversion(tiny_teacher, TARGETS, config, seeds=SEEDS, terms=build_terms(config, feature_prior=prior))


@pytest.mark.parametrize("term", ["tv_l1", "l2"])
def test_pixel_priors_pull_their_own_value_down(tiny_teacher: Teacher, term: str) -> None:
    values = []
    for weight in (1e-9, 1.0):
        config = InversionConfig(**{**DENSE, "tv_l2": 0.0, term: weight})
        values.append(invert(tiny_teacher, TARGETS, config, seeds=SEEDS).losses[term][-1])
    assert values[1] < 0.8 * values[0]


def test_bfloat16_follows_float32(tiny_teacher: Teacher) -> None:
    low = invert(tiny_teacher, TARGETS, InversionConfig(**DENSE, **STILL, dtype="bfloat16"), seeds=SEEDS)
    assert low.images.dtype == torch.float32
    _, _, prediction = score(tiny_teacher, tiny_teacher.to_uint8(low.images), low.keep_indices, TARGETS)
    assert prediction.tolist() == TARGETS.tolist()


def test_pixels_stay_those_of_a_valid_image(tiny_teacher: Teacher) -> None:
    result = invert(tiny_teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    assert (result.images >= tiny_teacher.low).all()
    assert (result.images <= tiny_teacher.high).all()


def test_a_schedule_for_more_patches_than_the_teacher_has(tiny_teacher: Teacher) -> None:
    config = InversionConfig(**{**SPARSE, "stop_fractions": [0.9, 0.9]})
    with pytest.raises(ConfigError, match="fewer than one of 16 patches"):
        invert(tiny_teacher, TARGETS, config, seeds=SEEDS)


def test_every_ending_of_a_config_is_a_config_error() -> None:
    bad = {
        "iterations": -1,
        "lr": 0.0,
        "betas": (0.5, 1.0),
        "jitter": 1.0,
        "flip": 1.5,
        "micro_batch": 0,
        "tv_l2": -1.0,
    }
    for name, value in bad.items():
        with pytest.raises(ConfigError, match=name):
            InversionConfig(**{**DENSE, name: value})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"lr must be finite, not {value}"):
            InversionConfig(**{**DENSE, "lr": value})


def test_no_iterations_leave_the_starting_noise(tiny_teacher: Teacher) -> None:
    result = invert(tiny_teacher, TARGETS, InversionConfig(**{**DENSE, "iterations": 0}), seeds=SEEDS)
    assert torch.equal(result.images, start_images(tiny_teacher, SEEDS))
    assert result.keep_indices.shape == (len(SEEDS), tiny_teacher.num_patches)
    assert result.losses["class_loss"].shape == (0,)


def test_one_channel() -> None:
    teacher = Teacher(make_tiny_model(in_chans=1), mean=(0.5,), std=(0.5,))
    result = invert(teacher, TARGETS, InversionConfig(**SPARSE), seeds=SEEDS)
    assert teacher.to_uint8(result.images).shape == (5, 32, 32, 1)


def test_terms_of_ones_own_beside_those_of_the_config(tiny_teacher: Teacher) -> None:
    """A term of pixels and one of a view: what the engine minimizes is their weighted sum."""
    config = InversionConfig(**SPARSE, **STILL)

    def darkness(images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))

    def confidence(shown: ViewOutput) -> torch.Tensor:
        assert shown.filled.shape == shown.jittered.shape
        return -shown.logits.softmax(dim=1).gather(1, shown.targets.unsqueeze(1)).squeeze(1)

    def brightness(weight: float) -> float:
        own = [Term("darkness", weight, darkness), Term("confidence", 0.5, confidence, sees="view")]
        result = invert(tiny_teacher, TARGETS, config, seeds=SEEDS, terms=[*build_terms(config), *own])
        assert list(result.losses) == ["class_loss", "tv_l2", "darkness", "confidence"]
        return float(result.losses["darkness"][-1])

    assert brightness(10.0) < brightness(1e-9) - 0.1


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["a", "a"], {}, "more than one is named 'a'"),
        ([], {}, r"terms: \[\] see pixels alone"),
        (["a"], {"adaptive_end": AdaptiveEnd(hold_steps=2)}, "adaptive_end reads the term class_loss"),
    ],
)
def test_impossible_terms(tiny_teacher: Teacher, names: list[str], changes: dict[str, Any], message: str) -> None:
    config = InversionConfig(**{**SPARSE, **changes})
    terms = [Term(name, 1.0, lambda shown: shown.logits.sum(dim=1), sees="view") for name in names]
    with pytest.raises(ConfigError, match=message):
        Inversion(tiny_teacher, TARGETS, config, seeds=SEEDS, terms=terms)


def test_a_loss_without_any_weight_is_refused(tiny_teacher: Teacher) -> None:
    unweighted: dict[str, Any] = {"class_weight": 0.0, "tv_l2": 0.0}
    config = InversionConfig(**SPARSE, **unweighted)
    with pytest.raises(ConfigError, match=r"has the weight 0 \(class_loss\), and 40 iterations would leave the images"):
        Inversion(tiny_teacher, TARGETS, config, seeds=SEEDS)
    own = [Term("own", 1.0, lambda shown: shown.logits.sum(dim=1), sees="view")]
    Inversion(tiny_teacher, TARGETS, config, seeds=SEEDS, terms=own)
    baseline = InversionConfig(**{**DENSE, "iterations": 0}, **unweighted)
    assert invert(tiny_teacher, TARGETS, baseline, seeds=SEEDS).images.isfinite().all()
