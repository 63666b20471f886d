import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation import DistillationConfig, StudentConfig
from pipeline.distillation.answers import Answers
from pipeline.distillation.arriving import ArrivingImages
from pipeline.distillation.batches import DistillationBatch, Images
from pipeline.distillation.descent import Group
from pipeline.distillation.images import MemoryImages
from pipeline.distillation.loop import StudentTrainer, _totals
from pipeline.distillation.objective import DTYPES
from pipeline.distillation.order import Share
from pipeline.distillation.state import TrainingState, load_state
from pipeline.distillation.students import build_student
from pipeline.errors import IncompleteError, NonFiniteError
from pipeline.models import LoadedModel, ModelConfig
from pipeline.vit.subset import SubsetViT
from tests.distillation.conftest import make_images

CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU)


def make_trainer(
    teacher: LoadedModel,
    output: Path,
    *,
    images: Images | None = None,
    labeled: Images | None = None,
    student: StudentConfig | None = None,
    keep_answers: bool = True,
    arriving: ArrivingImages | None = None,
    **settings: Any,
) -> StudentTrainer:
    config = DistillationConfig(
        teacher=ModelConfig(name="unused"),
        student=student or StudentConfig(depth_pruned=[0]),
        images="unused",
        output=str(output),
        **{"epochs": 3, "batch_size": 4, **settings},
    )

    def share(held: Images) -> MemoryImages:
        return MemoryImages(held, Share(batch_size=config.batch_size, seed=config.seed))

    training = arriving or share(images or make_images(11))
    answers = Answers(SubsetViT(teacher.model), with_tokens=config.token_weight > 0, dtype=DTYPES[config.dtype])
    if keep_answers and isinstance(training, MemoryImages):
        answers.keep(training.images, CPU, batch_size=4, rank=0, world_size=1)
    held_out = None if labeled is None else share(labeled)
    return StudentTrainer(
        config=config,
        digest="d" * 64,
        student=build_student(config.student, teacher, seed=config.seed),
        answers=answers,
        images=training,
        labeled=held_out,
        group=ALONE,
    )


def rows(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(trainer: StudentTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.student.model.state_dict().items()}


@pytest.mark.parametrize(
    ("settings", "term"),
    [
        ({}, "kl"),
        ({"token_weight": 1.0}, "tokens"),
        ({"label_weight": 1.0}, "labels"),
        ({"dtype": "bfloat16"}, "kl"),
        ({"optimizer": "sgd", "lr": 0.01, "schedule": "constant", "warmup_epochs": 1.0}, "kl"),
    ],
)
def test_what_is_asked_for_falls(teacher: LoadedModel, tmp_path: Path, settings: dict[str, Any], term: str) -> None:
    make_trainer(teacher, tmp_path, epochs=8, **settings).train()
    history = rows(tmp_path)
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1][term] < 0.9 * history[0][term]
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_student_that_reads_the_filled_image(teacher: LoadedModel, tmp_path: Path) -> None:
    student = StudentConfig(model=ModelConfig(name="resnet10t"))
    make_trainer(teacher, tmp_path, student=student, epochs=4).train()
    history = rows(tmp_path)
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_frozen_backbone_keeps_its_weights(teacher: LoadedModel, tmp_path: Path) -> None:
    student = StudentConfig(depth_pruned=[0], linear_head=True)
    trainer = make_trainer(teacher, tmp_path, student=student, optimizer="sgd", lr=0.1, temperature=20.0)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.weight", "head.bias"]


def test_a_step_descends_the_mean_over_the_batch(teacher: LoadedModel, tmp_path: Path) -> None:
    images = make_images(6)
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": 0.5, "momentum": 0.0, "schedule": "constant", "epochs": 1}
    trainer = make_trainer(teacher, tmp_path, images=images, batch_size=6, token_weight=0.5, **settings)
    before = {name: value.detach().clone() for name, value in trainer.student.model.named_parameters()}
    (batch,) = trainer.images.batches(0, CPU)
    loss = trainer.objective.losses(batch)["loss"].mean()
    gradients = dict(zip(before, torch.autograd.grad(loss, trainer.student.trained_parameters()), strict=True))
    trainer.train()
    for name, value in trainer.student.model.named_parameters():
        torch.testing.assert_close(value, before[name] - 0.5 * gradients[name], rtol=1e-4, atol=1e-6)


def test_answers_that_were_kept_train_as_fresh_ones(teacher: LoadedModel, tmp_path: Path) -> None:
    for name, keep in (("kept", True), ("fresh", False)):
        make_trainer(teacher, tmp_path / name, token_weight=1.0, keep_answers=keep).train()
    kept, fresh = rows(tmp_path / "kept"), rows(tmp_path / "fresh")
    assert [row["loss"] for row in kept] == pytest.approx([row["loss"] for row in fresh], rel=1e-3)


# Drop path draws random numbers: after a restart, they must be those of the step.
DROPPING: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
DROPPING = {"name": "vit_tiny_patch16_224", "model_args": {**DROPPING, "drop_path_rate": 0.3}}


@pytest.mark.parametrize(("stopped_at", "minutes"), [("_finish_epoch", 10.0), ("_step", 1e-9)])
def test_training_goes_on_from_the_last_checkpoint_as_if_it_had_not_stopped(
    teacher: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str, minutes: float
) -> None:
    settings: dict[str, Any] = {"student": StudentConfig(model=ModelConfig(**DROPPING)), "epochs": 4}
    settings |= {"labeled": make_images(10), "checkpoint_minutes": minutes}
    untouched = make_trainer(teacher, tmp_path / "untouched", **settings)
    untouched.train()

    stopped = make_trainer(teacher, tmp_path / "stopped", **settings)
    go_on = getattr(stopped, stopped_at)

    def stop_in_the_third_epoch(*arguments: Any) -> Any:
        (state,) = (value for value in arguments if isinstance(value, TrainingState))
        # Three steps an epoch; of the third epoch, the second is not done.
        if state.epoch == 2 and (stopped_at == "_finish_epoch" or state.steps == 7):
            raise KeyboardInterrupt
        return go_on(*arguments)

    monkeypatch.setattr(stopped, stopped_at, stop_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    names = [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()]
    assert ("epoch-00002-step-00000001.pt" in names) == (stopped_at == "_step")
    again = make_trainer(teacher, tmp_path / "stopped", **settings)
    again.train()

    expected = weights(untouched)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / name)]
        for name in ("untouched", "stopped")
    ]
    assert without_time[0] == without_time[1]


def test_the_best_epoch_is_the_one_of_the_highest_held_out_score(teacher: LoadedModel, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path, labeled=make_images(20), epochs=6, lr=3e-2, schedule="constant")
    trainer.train()
    state = load_state(str(tmp_path), "d" * 64)
    assert state is not None
    assert state.before_top1 is not None
    tops = [row["top1"] for row in rows(tmp_path)]
    assert (state.best_score, state.best_epoch) == (max(tops), tops.index(max(tops)) + 1)
    trainer.student.model.load_state_dict(state.best)
    assert (held_out := trainer._score()) is not None
    assert (held_out.top1, held_out.confusion) == (state.best_score, state.best_confusion)
    assert sum(held_out.confusion.values()) == 20


def test_teacher_and_student_are_scored_on_the_same_images(teacher: LoadedModel, tmp_path: Path) -> None:
    held_out = make_images(20, ragged=False)
    # Equal to the teacher, and never trained.
    whole = StudentConfig(depth_pruned=list(range(len(teacher.model.blocks))))  # type: ignore[arg-type]
    trainer = make_trainer(teacher, tmp_path, labeled=held_out, student=whole, epochs=1, lr=1e-9, warmup_epochs=0.0)
    trainer.train()
    state = load_state(str(tmp_path), "d" * 64)
    assert state is not None
    with torch.no_grad():
        predicted = teacher.model(torch.from_numpy(held_out.pixels)).argmax(dim=1).tolist()
    assert state.teacher_confusion == Counter(zip(held_out.labels.tolist(), predicted, strict=True))
    right = 100 * sum(label == taken for label, taken in zip(held_out.labels, predicted, strict=True)) / 20
    assert state.teacher_top1 == state.before_top1 == state.best_score == right
    assert state.best_confusion == state.teacher_confusion


def test_without_labels_the_best_epoch_is_the_one_of_the_lowest_loss(teacher: LoadedModel, tmp_path: Path) -> None:
    make_trainer(teacher, tmp_path).train()
    state = load_state(str(tmp_path), "d" * 64)
    assert state is not None
    losses = [row["loss"] for row in rows(tmp_path)]
    assert state.before_top1 is None
    assert state.best_epoch == losses.index(min(losses)) + 1


def test_scores_and_checkpoints_as_often_as_asked(teacher: LoadedModel, tmp_path: Path) -> None:
    make_trainer(teacher, tmp_path, labeled=make_images(5), epochs=7, score_every=3, checkpoint_every=4).train()
    assert [row["epoch"] for row in rows(tmp_path) if "top1" in row] == [3, 6, 7]
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == ["epoch-00004.pt", "epoch-00007.pt"]


def test_a_loss_that_is_not_finite_stops_the_training(teacher: LoadedModel, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path, optimizer="sgd", lr=1e30)
    with pytest.raises(NonFiniteError, match="distillation loss is not finite at step 1"):
        trainer.train()


def test_an_epoch_that_misses_an_image_is_reported(
    teacher: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(teacher, tmp_path)
    whole = trainer.images.batches

    def lossy(epoch: int, device: torch.device) -> Iterator[DistillationBatch]:
        return iter(list(whole(epoch, device))[1:])

    monkeypatch.setattr(trainer.images, "batches", lossy)
    with pytest.raises(IncompleteError, match="epoch 1 read 7 images of 11"):
        trainer.train()


@pytest.mark.parametrize("labels", [[0, -1, 2, -1, -1, 5], [-1] * 6])
def test_the_figure_of_the_labels_is_the_mean_over_images_that_have_one(
    teacher: LoadedModel, tmp_path: Path, labels: list[int]
) -> None:
    """Mixtures have none: half of all views by default."""
    images = replace(make_images(6), labels=np.array(labels))
    settings: dict[str, Any] = {"label_weight": 0.5, "optimizer": "sgd", "lr": 1e-9, "epochs": 1, "batch_size": 3}
    trainer = make_trainer(teacher, tmp_path, images=images, **settings)
    (batch,) = MemoryImages(images, Share(batch_size=6, seed=0)).batches(0, CPU)
    with torch.no_grad():
        logits = trainer.objective.read(batch)[0]
        expected = F.cross_entropy(logits, batch.labels, reduction="sum", ignore_index=-1)
    trainer.train()
    (row,) = rows(tmp_path)
    number = sum(label >= 0 for label in labels)
    assert (row["labeled"], row["images"]) == (number, 6)
    assert row["labels"] == pytest.approx(float(expected) / max(number, 1), rel=1e-5)
    assert row["loss"] == pytest.approx(row["kl"] + 0.5 * row["labels"] * number / 6, rel=1e-5)


def test_sums_of_a_checkpoint_of_an_earlier_version_are_taken() -> None:
    assert _totals([1.0, 0.0, 2.0, 3.0, 8.0]).tolist() == [1.0, 0.0, 2.0, 3.0, 8.0, 8.0]
    assert _totals([1.0, 0.0, 2.0, 3.0, 5.0, 8.0]).tolist() == [1.0, 0.0, 2.0, 3.0, 5.0, 8.0]


def test_a_student_is_scored_in_float32_as_it_is_saved(teacher: LoadedModel, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path, labeled=make_images(6, seed=1), dtype="bfloat16", epochs=1)
    types: set[tuple[bool, torch.dtype]] = set()

    def watch(layer: torch.nn.Module, _: Any, out: Tensor) -> None:
        types.add((layer.training, out.dtype))

    trainer.student.model.get_submodule("blocks.0.mlp.fc1").register_forward_hook(watch)
    trainer.train()
    assert types == {(True, torch.bfloat16), (False, torch.float32)}
