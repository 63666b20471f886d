"""A shard that was cut off goes on from its checkpoint, to the same part."""

import errno
import hashlib
import io
import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from jobs.status import look
from pipeline import storage
from pipeline.dataset.index import read_index
from pipeline.errors import DatasetError, NonFiniteError
from pipeline.inversion import Inversion
from pipeline.outputs.names import SNAPSHOTS
from pipeline.synthesis import checkpoints
from pipeline.synthesis.checkpoints import FOLDER, clear_checkpoints
from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.plan import SynthesisPlan, plan_synthesis
from pipeline.synthesis.writer import PartWriter
from tests.synthesis.conftest import ROOT, Made, make_config, parts_of, start, write_config

OFTEN = 1e-9
ITERATIONS = 20
INVERSION = {"iterations": ITERATIONS, "stop_steps": [2, 4], "stop_fractions": [0.3, 0.3]}


class Killed(BaseException):
    """The process was killed."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that inversions take; a negative number N is put there to kill the process before step -N."""
    taken: list[int] = []
    step = Inversion.step

    def counted(self: Inversion) -> None:
        if taken and taken[0] == -self.num_steps:
            raise Killed
        taken.append(self.num_steps)
        step(self)

    monkeypatch.setattr(Inversion, "step", counted)
    return taken


def write(plan: SynthesisPlan, shard_id: int = 0) -> Outcome:
    """Write a part in this process, as a worker that was just started."""
    shard = plan.shards[shard_id]
    return PartWriter(plan.config, plan.digest).write_shard(shard_id, shard["labels"], shard["image_ids"])


def cut_off(plan: SynthesisPlan, steps: list[int], before: int) -> None:
    """Invert shard 0 up to a step, and wait for the checkpoint."""
    shard, writer = plan.shards[0], PartWriter(plan.config, plan.digest)
    steps[:] = [-before]
    with pytest.raises(Killed):
        writer.make(0, shard["labels"], shard["image_ids"])
    assert writer.checkpoints is not None
    writer.checkpoints._writing.shutdown()
    steps.clear()


def make_plan(teacher: Path, output: Path, **changes: Any) -> SynthesisPlan:
    settings = {"inversion": INVERSION, "checkpoint_minutes": OFTEN, **changes}
    return plan_synthesis(make_config(teacher, output, **settings))


@pytest.fixture(scope="module")
def undisturbed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part 0 and how its images form, made without checkpoints."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert write(make_plan(tiny_folder, output, snapshots=2, checkpoint_minutes=None)).error == ""
    assert not (output / FOLDER).exists()
    return output


def test_a_shard_goes_on_where_its_worker_was_cut_off(
    tiny_folder: Path, tmp_path: Path, undisturbed: Path, steps: list[int]
) -> None:
    plan = make_plan(tiny_folder, tmp_path, snapshots=2)
    cut_off(plan, steps, before=11)
    (file,) = (tmp_path / FOLDER).iterdir()
    assert file.name == f"shard-00000-{plan.digest[:8]}.pt"
    # The write that was under way when step 10 was done may have been the last.
    state = checkpoints._from_bytes(str(file), file.read_bytes())
    done = state["run"]["num_steps"]
    assert 0 < state["seconds"] < 60
    # As if the steps before had taken so long.
    file.write_bytes(changed(file.read_bytes(), seconds=5000.0))
    outcome = write(plan)
    assert 5000 < outcome.seconds < 5060
    assert 0 < done <= 11
    assert steps == list(range(done, ITERATIONS))
    assert outcome.resumed == f"shard 0 went on from a checkpoint at step {done} of {ITERATIONS}"
    assert outcome.notes == []
    assert parts_of(tmp_path) == parts_of(undisturbed)
    assert (tmp_path / SNAPSHOTS).read_text() == (undisturbed / SNAPSHOTS).read_text()
    assert not list((tmp_path / FOLDER).iterdir())


def signed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


class RunsCode:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch /tmp/never-run-by-a-checkpoint",)


def changed(content: bytes, **facts: Any) -> bytes:
    file = io.BytesIO()
    torch.save(checkpoints._from_bytes("x", content) | facts, file)
    return signed(file.getvalue())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda content: content[:-1], "is damaged"),
        (lambda content: b"", "is damaged"),
        (lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], "is damaged"),
        (lambda content: changed(content, digest="0" * 64), "is of another run, device or version of torch"),
        (lambda content: changed(content, seeds=[1, 2, 3, 4, 5]), "is of another run, device or version of torch"),
        (lambda content: changed(content, shard_id=1), "is of another run, device or version of torch"),
        (lambda content: changed(content, run={"num_steps": 3}), "another version of this software"),
        (lambda content: signed(pickle.dumps(RunsCode(), protocol=2)), "and was not opened"),
        (lambda content: signed(b"no checkpoint"), "and was not opened"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_costs_the_time_alone(
    harm: Callable[[bytes], bytes], said: str, tiny_folder: Path, tmp_path: Path, undisturbed: Path, steps: list[int]
) -> None:
    plan = make_plan(tiny_folder, tmp_path)
    cut_off(plan, steps, before=3)
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_bytes(harm(file.read_bytes()))
    outcome = write(plan)
    (note,), resumed = outcome.notes, outcome.resumed
    assert resumed == ""
    assert note.startswith("shard 0 was begun anew: ")
    assert said in note
    assert "\n" not in note
    assert steps == list(range(ITERATIONS))
    assert parts_of(tmp_path) == parts_of(undisturbed)
    assert not list((tmp_path / FOLDER).iterdir())


@pytest.mark.parametrize("asked", ["list_files", "read_bytes"])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_checkpoint_that_storage_does_not_give_for_a_moment_is_asked_for_again_and_never_replaced(
    asked: str,
    lasting: bool,
    tiny_folder: Path,
    tmp_path: Path,
    undisturbed: Path,
    steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan(tiny_folder, tmp_path)
    cut_off(plan, steps, before=11)
    (file,) = (tmp_path / FOLDER).iterdir()
    kept, whole, refused = file.read_bytes(), getattr(storage, asked), []

    def busy(uri: str, *rest: Any) -> Any:
        if FOLDER in uri and (lasting or len(refused) < 2):
            refused.append(uri)
            raise DatasetError(f"cannot read {uri!r}: SlowDown") from OSError(errno.EBUSY, "SlowDown")
        return whole(uri, *rest)

    monkeypatch.setattr(checkpoints, "_RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    with monkeypatch.context() as outage:
        outage.setattr(storage, asked, busy)
        outcome = write(plan)
    assert len(refused) == (4 if lasting else 2)
    if lasting:
        assert (outcome.error, outcome.storage_failed) == ("DatasetError", True)
        assert "SlowDown" in outcome.reason
        assert steps == []
        assert file.read_bytes() == kept
        outcome = write(plan)
    assert outcome.resumed.startswith("shard 0 went on from a checkpoint at step ")
    assert outcome.notes == []
    assert parts_of(tmp_path) == parts_of(undisturbed)


def test_without_a_place_for_checkpoints_the_shard_is_made_and_the_driver_told(
    tiny_folder: Path, tmp_path: Path, undisturbed: Path, steps: list[int]
) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    notes = write(make_plan(tiny_folder, tmp_path)).notes
    assert len(notes) == 1
    assert ".pt' was not written: " in notes[0]
    assert parts_of(tmp_path) == parts_of(undisturbed)


def test_what_fails_by_itself_leaves_no_checkpoint(
    tiny_folder: Path, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny_folder, tmp_path)
    cut_off(plan, steps, before=3)

    def not_finite(self: Inversion) -> None:
        raise NonFiniteError(5, "class_loss")

    monkeypatch.setattr(Inversion, "step", not_finite)
    outcome = write(plan)
    assert outcome.error == "NonFiniteError"
    assert not list((tmp_path / FOLDER).iterdir())


def test_a_notice_writes_a_checkpoint_before_the_interval_is_over(
    tiny_folder: Path, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.workers.checkpoint_timer._ASK_EVERY_S", 0.0)
    plan = make_plan(tiny_folder, tmp_path, checkpoint_minutes=60)
    cut_off(plan, steps, before=6)
    assert not (tmp_path / FOLDER).exists()
    monkeypatch.setattr("pipeline.synthesis.writer.is_node_leaving", lambda: True)
    cut_off(plan, steps, before=6)
    write(plan)
    assert steps == list(range(1, ITERATIONS))


def test_leftovers_of_shards_that_are_done_are_deleted(tmp_path: Path) -> None:
    names = [f"shard-{shard:05d}-0123abcd.pt" for shard in range(3)]
    for name in (*names, "mine.txt"):
        storage.write_bytes(str(tmp_path / FOLDER / name), b"x")
    clear_checkpoints(str(tmp_path), {0, 2})
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["mine.txt", names[1]]
    (tmp_path / FOLDER / "mine.txt").unlink()
    clear_checkpoints(str(tmp_path), {0, 1, 2})
    assert not (tmp_path / FOLDER).exists()
    clear_checkpoints(str(tmp_path), {0, 1, 2})


# Each worker saves after every step. The first one dies in step 5 of shard 2, when checkpoints are there, and counts.
KILLER = """
import os, signal, time

def set_up():
    from pipeline.inversion import Inversion

    whole = Inversion.step
    folder = os.environ["STEPS"]

    def step(self):
        name = "-".join(map(str, self.targets.tolist()))
        killed = os.path.join(folder, "killed")
        if name == os.environ["TARGETS"] and self.num_steps == 5 and not os.path.exists(killed):
            while not any("shard-00002" in name for name in os.listdir(os.environ["CHECKPOINTS"])):
                time.sleep(0.05)
            open(killed, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        with open(os.path.join(folder, name), "a") as file:
            file.write(str(self.num_steps) + "\\n")
        whole(self)

    Inversion.step = step
"""


@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_is_followed_by_one_that_goes_on_and_the_index_counts_both(
    made: Made, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    (tmp_path / "steps").mkdir()
    output = tmp_path / "out"
    file = write_config(tmp_path, tiny_folder, str(output), checkpoint_minutes=OFTEN)
    plan = plan_synthesis(made.config)
    targets = "-".join(map(str, plan.shards[2]["labels"]))
    # What an earlier run left of shard 4; that it cannot be used does not matter to the index.
    storage.write_bytes(str(output / FOLDER / f"shard-00004-{plan.digest[:8]}.pt"), b"damaged")
    env = {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "STEPS": str(tmp_path / "steps"),
        "TARGETS": targets,
        "CHECKPOINTS": str(output / FOLDER),
    }
    job = start(["-m", "jobs.synthesize", "--config", str(file)], env, setup_hook="killer.set_up")
    out, reported = job.communicate(timeout=200)
    assert job.returncode == 0, reported
    summary = json.loads(out)
    assert summary["complete"]
    assert parts_of(output) == made.parts
    rows = read_index(str(output), plan.digest).to_pylist()
    # The worker may have been writing shard 1 when it was killed.
    assert [row["attempts"] for row in rows if row["shard_id"] != 1] == [1, 2, 1, 2, 1]
    assert {(row["gpu"], row["device"]) for row in rows} <= {("0", "cpu"), ("1", "cpu"), (None, None)}
    node = f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:8]})"
    assert [rows[2][name] for name in ("node", "device")] == [node, "cpu"]
    retried = summary["num_retried"]
    assert retried == look(str(output))["num_retried"] == sum((row["attempts"] or 1) > 1 for row in rows)
    assert f">shards that took more than one attempt</td><td>{retried}</td>" in (output / "report.html").read_text()
    taken = [int(line) for line in (tmp_path / "steps" / targets).read_text().split()]
    again = taken[5]
    assert 1 <= again <= 5
    assert taken == [*range(5), *range(again, 8)]
    assert f"shard 2 went on from a checkpoint at step {again} of 8" in reported
    assert not (output / FOLDER).exists()
