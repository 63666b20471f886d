"""The loop of quantization-aware distillation: what it keeps, and how it goes on after it was cut off."""

from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.distillation.answers import Answers, as_reader
from pipeline.distillation.augment_config import AugmentConfig
from pipeline.distillation.augmented import AugmentedImages, Augmenter
from pipeline.distillation.descent import Group
from pipeline.distillation.images import MemoryImages
from pipeline.distillation.order import Share
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.held_back import hold_back
from pipeline.quantization.learned import LearnedGraph
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.qat_config import QatConfig
from pipeline.quantization.qat_loop import QatCheckpoints, QatTrainer, Trained
from pipeline.quantization.sensitivity import divergence
from pipeline.quantization.variants import Values, Variant, calibrated_values
from tests.conftest import HALF, make_tiny_model
from tests.distillation.conftest import make_images

W3A4 = Variant("w3a4", BitWidths(weights=3, activations=4))
ALONE = Group(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def start(model: nn.Module, ragged: list[CalibrationBatch]) -> Values:
    observer = RangeObserver(model, "linear")
    observer.observe(ragged)
    return calibrated_values(W3A4, {4: observer.ranges()})


@pytest.fixture(scope="module")
def make_trainer(
    model: nn.Module, start: Values, ragged: list[CalibrationBatch]
) -> Callable[..., tuple[QatTrainer, LearnedGraph]]:
    """Makes a training on views of eleven images, in three steps an epoch, with eight images held back."""
    answers = Answers(as_reader(make_tiny_model()), with_tokens=False, dtype=torch.float32)

    def make(
        folder: Path, done: Callable[[int], None] = lambda _: None, **settings: Any
    ) -> tuple[QatTrainer, LearnedGraph]:
        own: Any = {"steps": 8, "batch_size": 4, "score_every": 2, "lr": 1e-3, "scale_lr": 1e-2, "min_gain": 0.0}
        config = QatConfig(**own | settings)
        graph = LearnedGraph(model, "linear", W3A4, start)
        views = Augmenter(AugmentConfig(), 0, HALF, HALF, (4, 4), reads_kept=True)
        images = AugmentedImages(MemoryImages(make_images(11), Share(batch_size=4, seed=0)), views, notes=False)
        trainer = QatTrainer(
            config=config,
            label="w3a4",
            graph=graph,
            answers=answers,
            images=images,
            held_back=hold_back(ragged, answers, ALONE, batch_size=4) if config.held_back else None,
            group=ALONE,
            checkpoints=QatCheckpoints(str(folder), "d" * 64),
            done=done,
        )
        return trainer, graph

    return make


@pytest.fixture(scope="module")
def untouched(
    make_trainer: Callable[..., tuple[QatTrainer, LearnedGraph]],
    start: Values,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Trained, LearnedGraph]:
    trainer, graph = make_trainer(tmp_path_factory.mktemp("untouched"))
    return trainer.train(start), graph


def check_equal(found: Values, expected: Values) -> None:
    assert found.ranges == expected.ranges
    for ours, theirs in ((found.parameters, expected.parameters), (found.scales, expected.scales)):
        assert ours is not None
        assert theirs is not None
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_held_back_images_are_measured_before_the_training_and_every_so_many_steps(
    untouched: tuple[Trained, LearnedGraph], model: nn.Module, start: Values, ragged: list[CalibrationBatch]
) -> None:
    found = untouched[0]
    assert [row["step"] for row in found.history] == list(range(9))
    assert [row["step"] for row in found.history if "divergence" in row] == [0, 2, 4, 6, 8]
    assert len(found.losses) == 8
    assert found.before == found.history[0]

    @torch.no_grad()
    def distance(read: CalibrationBatch) -> float:
        graph = LearnedGraph(model, "linear", W3A4, start).graph
        exact: Any = as_reader(make_tiny_model())
        answers: Tensor = exact.forward_tokens(read.images, read.keep_indices)[0]
        return len(answers) * divergence(graph(read.images, read.keep_indices), answers)

    assert found.history[0]["divergence"] == pytest.approx(sum(map(distance, ragged)) / 8, rel=1e-4)


def test_the_step_that_is_nearest_to_the_teacher_is_kept(
    untouched: tuple[Trained, LearnedGraph], ragged: list[CalibrationBatch]
) -> None:
    found, graph = untouched
    measured = {row["step"]: row["divergence"] for row in found.history if "divergence" in row}
    assert found.kept_step == min(measured, key=lambda step: measured[step]) > 0
    assert found.best["step"] == found.kept_step
    check_equal(found.values, graph.values())
    answers = Answers(as_reader(make_tiny_model()), with_tokens=False, dtype=torch.float32)
    again = hold_back(ragged, answers, ALONE, batch_size=4).measure(graph)
    assert again["divergence"] == pytest.approx(measured[found.kept_step], rel=1e-6)


def test_shares_of_the_held_back_images_add_up_to_all_of_them(
    model: nn.Module, start: Values, ragged: list[CalibrationBatch]
) -> None:
    graph = LearnedGraph(model, "linear", W3A4, start)
    answers = Answers(as_reader(make_tiny_model()), with_tokens=False, dtype=torch.float32)
    shares = [hold_back(ragged, answers, Group(rank, 3, ALONE.device), batch_size=4) for rank in range(3)]
    read = [sorted(name for batch in share.batches for name in batch.image_ids) for share in shares]
    assert sorted(chain(*read)) == sorted(name for batch in ragged for name in batch.image_ids)
    assert all(not set(one) & set(other) for one, other in pairwise(read))
    with torch.no_grad():
        assert all(graph(batch).isfinite().all() for share in shares for batch in share.batches)


@pytest.mark.parametrize(("settings", "better"), [({"steps": 2, "lr": 0.3}, False), ({"min_gain": 0.999}, True)])
def test_where_no_step_helps_enough_the_calibrated_values_are_kept_as_they_are(
    make_trainer: Callable[..., tuple[QatTrainer, LearnedGraph]],
    start: Values,
    tmp_path: Path,
    settings: dict[str, float],
    better: bool,
) -> None:
    trainer, _ = make_trainer(tmp_path, **settings)
    found = trainer.train(start)
    assert found.before is not None
    assert (found.best["divergence"] < found.before["divergence"]) == better
    assert found.kept_step == 0
    assert found.values is start


def test_without_held_back_images_the_last_step_is_kept(
    make_trainer: Callable[..., tuple[QatTrainer, LearnedGraph]], start: Values, tmp_path: Path
) -> None:
    trainer, graph = make_trainer(tmp_path, steps=2, lr=0.3, held_back=0)
    found = trainer.train(start)
    assert (found.kept_step, found.before) == (2, None)
    assert found.values is not start
    check_equal(found.values, graph.values())


@pytest.mark.parametrize("stop_at", [3, 5])
def test_a_training_goes_on_from_its_last_checkpoint_to_the_same_bits(
    make_trainer: Callable[..., tuple[QatTrainer, LearnedGraph]],
    untouched: tuple[Trained, LearnedGraph],
    start: Values,
    tmp_path: Path,
    stop_at: int,
) -> None:
    # In the middle of an epoch and at its end, with the best step before the checkpoint and after it.
    steps: list[int] = []

    def stop(num_images: int) -> None:
        steps.append(num_images)
        if len(steps) == stop_at + 1:
            raise KeyboardInterrupt

    trainer, _ = make_trainer(tmp_path, stop, checkpoint_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(start)
    (written,) = (tmp_path / "checkpoints").iterdir()
    epoch, step = divmod(stop_at - 1, 3)
    assert written.name == f"epoch-{epoch:05d}-step-{step + 1:08d}.pt"
    steps.clear()
    again, _ = make_trainer(tmp_path, steps.append)
    found = again.train(start)
    assert len(steps) == 8 - stop_at
    assert found.history == untouched[0].history
    assert found.kept_step == untouched[0].kept_step
    check_equal(found.values, untouched[0].values)
    # Of a training that is done, nothing is left to do.
    steps.clear()
    done, _ = make_trainer(tmp_path, steps.append)
    check_equal(done.train(start).values, untouched[0].values)
    assert steps == []


def test_the_loss_that_is_reported_is_the_divergence_that_it_is_called(
    make_trainer: Callable[..., tuple[QatTrainer, LearnedGraph]], start: Values, tmp_path: Path
) -> None:
    """In nats, of softened answers: what is descended is the square of the temperature times as large."""
    trainer, graph = make_trainer(tmp_path, steps=1, temperature=3.0, held_back=0)
    (batch, *_) = trainer.images.batches(0, ALONE.device)
    answers = Answers(as_reader(make_tiny_model()), with_tokens=False, dtype=torch.float32)
    with torch.no_grad():
        expected = divergence(graph(batch) / 3, answers(batch)[0] / 3)
    found = trainer.train(start)
    assert found.losses == pytest.approx([expected], rel=1e-4)
    assert found.first_loss == found.last_loss == found.losses[0]
