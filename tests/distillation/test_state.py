import os
from pathlib import Path

import pytest
import torch

from pipeline.distillation.state import TrainingState, last_place, list_places, load_state, save_state
from pipeline.errors import CheckpointError


def make_state(epoch: int = 3) -> TrainingState:
    weights = {"head.weight": torch.full((2, 2), float(epoch))}
    return TrainingState(
        digest="d" * 64,
        epoch=epoch,
        images_seen=30,
        steps=6,
        student=weights,
        best=weights,
        best_epoch=epoch,
        best_score=91.5,
        optimizer={"state": {0: {"step": torch.tensor(6.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        before_top1=11.0,
        history=[{"epoch": 3, "loss": 0.5}],
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save_state(str(tmp_path), make_state())
    state = load_state(str(tmp_path), "d" * 64)
    assert state is not None
    assert torch.equal(state.student["head.weight"], torch.full((2, 2), 3.0))
    assert (state.epoch, state.images_seen, state.best_score, state.before_top1) == (3, 30, 91.5, 11.0)
    assert state.optimizer == make_state().optimizer
    assert state.history == make_state().history


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    large = {"weight": torch.zeros(500, 500)}
    save_state(str(tmp_path), TrainingState(digest="d", student=large, best=large))
    assert next((tmp_path / "checkpoints").iterdir()).stat().st_size < 1.5 * 500 * 500 * 4


def test_the_latest_two_are_kept_and_the_latest_counts(tmp_path: Path) -> None:
    assert load_state(str(tmp_path), "d" * 64) is None
    for epoch in (8, 9, 10, 11):
        save_state(str(tmp_path), make_state(epoch))
    assert list_places(str(tmp_path)) == [(10, 0), (11, 0)]
    assert last_place(str(tmp_path)) == (11, 0)
    state = load_state(str(tmp_path), "d" * 64)
    assert state is not None
    assert state.epoch == 11


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save_state(str(tmp_path), make_state())
    with pytest.raises(CheckpointError, match="is of run dddddddd, not of eeeeeeee"):
        load_state(str(tmp_path), "e" * 64)


def test_a_corrupt_checkpoint_is_refused(tmp_path: Path) -> None:
    save_state(str(tmp_path), make_state())
    file = tmp_path / "checkpoints" / "epoch-00003.pt"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"epoch-00003\.pt' cannot be read"):
        load_state(str(tmp_path), "d" * 64)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was-run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"digest": Malicious()}, tmp_path / "checkpoints" / "epoch-00001.pt")
    with pytest.raises(CheckpointError, match=r"holds more than weights .*not opened"):
        load_state(str(tmp_path), "d" * 64)
    assert not (tmp_path / "was-run").exists()


def test_a_checkpoint_within_an_epoch_counts_only_in_the_order_that_its_steps_are_of(tmp_path: Path) -> None:
    save_state(str(tmp_path), make_state(2))
    within = make_state(2)
    within.epoch_steps, within.epoch_totals, within.order = 7, [0.1, 7.0], "2 workers"
    save_state(str(tmp_path), within)
    same = load_state(str(tmp_path), "d" * 64, order="2 workers")
    other = load_state(str(tmp_path), "d" * 64, order="3 workers")
    assert same is not None
    assert other is not None
    assert (same.epoch, same.epoch_steps, same.epoch_totals) == (2, 7, [0.1, 7.0])
    assert (other.epoch, other.epoch_steps) == (2, 0)


@pytest.mark.parametrize(("full", "start"), [(True, "continues after epoch 2"), (False, "starts over")])
def test_a_line_says_where_a_training_continues_whose_last_checkpoint_is_of_another_order(
    full: bool, start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if full:
        save_state(str(tmp_path), make_state(2))
    within = make_state(4)
    within.epoch_steps, within.order = 7, "2 workers"
    save_state(str(tmp_path), within)
    found = load_state(str(tmp_path), "d" * 64, order="3 workers", notes=True)
    assert (None if found is None else found.epoch) == (2 if full else None)
    assert "epoch-00004-step-00000007.pt is not used: its images were" in capsys.readouterr().err


def test_one_checkpoint_within_an_epoch_is_kept_until_the_next(tmp_path: Path) -> None:
    for steps in (3, 7, 0):
        state = make_state(4 if steps else 5)
        state.epoch_steps = steps
        if not steps:
            # A process was killed while it wrote.
            (tmp_path / "checkpoints" / ".epoch-00005.pt.0123abcd.tmp").write_bytes(b"half")
        save_state(str(tmp_path), state)
        expected = [f"epoch-00004-step-{steps:08d}.pt"] if steps else ["epoch-00005.pt"]
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == expected
