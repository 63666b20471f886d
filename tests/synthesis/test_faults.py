"""Broken GPUs, shards that kill, outputs of one machine alone: on real workers, with logical GPUs."""

import io
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from pipeline.cluster import own_errors, start_here
from pipeline.dataset.index import read_index
from pipeline.errors import DatasetError, IncompleteError
from pipeline.synthesis import first_parts, loading, passes
from pipeline.synthesis.attempts import Attempts
from pipeline.synthesis.devices import Device
from pipeline.synthesis.faults import is_device_error
from pipeline.synthesis.first_parts import FirstParts
from pipeline.synthesis.guard import GuardedWriter
from pipeline.synthesis.indexing import RunningIndex
from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.passes import _ended, invert_missing
from pipeline.synthesis.plan import plan_synthesis
from pipeline.synthesis.progress import ProgressReport
from pipeline.synthesis.run import _begin
from pipeline.synthesis.tally import Tally
from tests.synthesis.conftest import ROOT, TWO_ACTORS, Made, make_config, parts_of, start, write_config

# GPU 0 fails with every shard, and shard 3 kills the process that works on it.
FAULTY = """
import os, signal

def set_up():
    import torch
    from pipeline.synthesis.actor import Inverter

    whole = Inverter.invert_shard

    def invert_shard(self, shard_id, *rest):
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "0":
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        if shard_id == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, shard_id, *rest)

    Inverter.invert_shard = invert_shard
"""

# GPU 0 fails once, with its first shard; what each GPU begins is written down.
ONCE_FAULTY = """
import os, time
from pathlib import Path

def set_up():
    import torch
    from pipeline.synthesis.actor import Inverter

    whole = Inverter.invert_shard

    def invert_shard(self, shard_id, *rest):
        gpu, log = os.environ.get("CUDA_VISIBLE_DEVICES"), Path(os.environ["BEGUN"])
        with log.open("a") as file:
            file.write(f"{gpu} {shard_id}\\n")
        if gpu == "0" and not log.with_suffix(".failed").exists():
            log.with_suffix(".failed").touch()
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        time.sleep(0.3)
        return whole(self, shard_id, *rest)

    Inverter.invert_shard = invert_shard
"""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Found no NVIDIA driver on your system."), True),
        (RuntimeError("No CUDA GPUs are available"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. CUDA error"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error: no"), False),
    ],
)
def test_device_errors_are_reported_from_others(error: Exception, expected: bool) -> None:
    assert is_device_error(error) is expected


# Each of five deaths costs the start of a process that imports torch.
@pytest.mark.timeout(600)
def test_a_sick_gpu_and_a_shard_that_kills_cost_that_shard_alone(made: Made, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    pool = {**TWO_ACTORS, "max_attempts": 2}
    file = write_config(tmp_path, tiny_folder, str(tmp_path / "out"), pool=pool)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    job = start(["-m", "jobs.synthesize", "--config", str(file)], env, setup_hook="faulty.set_up")
    out, reported = job.communicate(timeout=500)
    assert job.returncode == 1, reported
    summary = json.loads(out)
    assert (summary["num_done"], summary["missing"]) == (5, [])
    (failed,) = summary["failed"]
    assert failed["shard_id"] == 3
    # Whichever of the two GPUs took it last.
    assert failed["reason"].startswith("given up after 2 attempts (killed for using too much memory, or crashed?)")
    record = json.loads((tmp_path / "out" / "failed" / "shard-00003.json").read_text())
    assert (record["error"], record["labels"]) == ("WorkerDied", [5, 6])
    assert {name: part for name, part in made.parts.items() if "part-00003" not in name} == parts_of(tmp_path / "out")
    handed_back = re.findall(r"failed on GPU 0 of node .* while inverting shard (\d); the shard goes back", reported)
    index = read_index(summary["output"], summary["digest"])
    attempts = dict(zip(index["shard_id"].to_pylist(), index["attempts"].to_pylist(), strict=True))
    assert handed_back
    # Not known of one whose worker was killed right after it had written the part.
    assert all((attempts[int(shard_id)] or 2) >= 2 for shard_id in handed_back if shard_id != "3")
    assert "failed on GPU 0 of node " in reported
    assert "uncorrectable ECC error" in reported
    assert "Traceback" not in reported


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_session")
def test_a_shard_that_a_gpu_failed_on_is_made_by_the_other_before_those_that_nobody_began(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "once_faulty.py").write_text(ONCE_FAULTY)
    file = write_config(tmp_path, tiny_folder, str(tmp_path / "out"), pool=TWO_ACTORS, images_per_class=10)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "BEGUN": str(tmp_path / "begun")}
    job = start(["-m", "jobs.synthesize", "--config", str(file)], env, setup_hook="once_faulty.set_up")
    out, reported = job.communicate(timeout=500)
    assert job.returncode == 0, reported
    assert json.loads(out)["num_done"] == 20
    begun = [(gpu, int(shard)) for gpu, shard in map(str.split, (tmp_path / "begun").read_text().splitlines())]
    assert len(begun) == 21
    assert {gpu for gpu, _ in begun} == {"0", "1"}
    failed = next(place for place, (gpu, _) in enumerate(begun) if gpu == "0")
    by_other = [shard_id for gpu, shard_id in begun[failed:] if gpu == "1"]
    # The other GPU may have taken one, or begun one of two that it is called for, by then.
    assert begun[failed][1] in by_other[:3]
    assert reported.count("failed on GPU 0") == 1


@pytest.mark.usefixtures("ray_session")
def test_where_no_worker_can_load_the_teacher_the_run_ends_and_names_them(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "teacher")
    plan = plan_synthesis(make_config(tmp_path / "teacher", tmp_path / "out", pool=TWO_ACTORS))
    _begin(plan)
    shutil.rmtree(tmp_path / "teacher")
    expected = r"no working worker is left: GPU \d of node .*: .*; GPU \d of node "
    with pytest.raises(IncompleteError, match=expected) as kept, own_errors():
        invert_missing(plan, plan.to_do, RunningIndex(plan.config.output, plan.digest))
    check_gpus_come_free(kept)


@pytest.mark.usefixtures("ray_session")
def test_workers_that_do_not_see_the_output_stop_before_they_make_anything(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_synthesis(make_config(tiny_folder, tmp_path / "out"))

    # Of a function, so that Ray sends the workers the class itself: they do not know this module.
    class Hasty(GuardedWriter):
        """A worker that does not wait for the output, which a node may mount a moment after it has started."""

        def __init__(self, *arguments: Any) -> None:
            loading._LOOK_AGAIN_S = (0.0,)
            super().__init__(*arguments)

    monkeypatch.setattr(passes, "GuardedWriter", Hasty)
    expected = r"worker .* does not find '.*manifest\.json'.* all machines share"
    with pytest.raises(IncompleteError, match=expected) as kept, own_errors():
        invert_missing(plan, plan.to_do, RunningIndex(plan.config.output, plan.digest))
    check_gpus_come_free(kept)


def check_gpus_come_free(error: pytest.ExceptionInfo[IncompleteError]) -> None:
    """Wait until nothing of a run that failed holds a GPU, though its error and the frames of it are kept."""
    assert error.traceback
    deadline = time.monotonic() + 60
    while ray.available_resources().get("GPU", 0) < ray.cluster_resources()["GPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_first_part_of_each_worker_is_looked_for(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    parts = FirstParts(made.summary["output"], made.summary["digest"], notes.append)
    assert parts.why_lost(Outcome(2, "node-8 pid 6")) == ""
    monkeypatch.setattr(first_parts, "_LOOK_AGAIN_S", (0.0,))
    reason = parts.why_lost(Outcome(99, "node-9 pid 7"))
    assert reason.startswith("worker node-9 pid 7 wrote shard 99 as '")
    assert "part-00099-" in reason
    assert reason.endswith("Give an output that all machines share, such as s3://...")
    # One whose first part was found is not looked after again, and one whose part was not is not believed either.
    assert parts.why_lost(Outcome(98, "node-8 pid 6")) == ""
    assert parts.why_lost(Outcome(97, "node-9 pid 7")) == reason
    # Neither are others of the node, which may be many.
    assert "wrote shard 96" in (others := parts.why_lost(Outcome(96, "node-7 pid 1", node="seven")))
    assert parts.why_lost(Outcome(95, "node-7 pid 2", node="seven", by_another=True)) == others
    assert notes == [f"node node-9 pid 7 gets no more work: {reason}", f"node seven gets no more work: {others}"]


@pytest.mark.usefixtures("ray_session")
def test_a_part_that_a_worker_finds_on_its_own_disk_alone_costs_its_node_the_work_and_is_made_by_another(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an earlier run, for which the file system that all share was not mounted there."""
    monkeypatch.setattr(first_parts, "_LOOK_AGAIN_S", (0.0,))
    attempts = start_here(Attempts, 3)
    ray.get(attempts.open_pass.remote([2, 99], 1, fixed_size=True, start_timeout_s=0))
    report = io.StringIO()
    progress = ProgressReport(Tally(), num_shards=6, num_done=0, num_images=30, stream=report, why_silent=str)
    parts = FirstParts(made.summary["output"], made.summary["digest"], progress.note)
    far = Device("far", "far", "0")
    ray.get(attempts.enter.remote("a", far, "far pid 7", loaded=True, turn=0))
    found = [Outcome(99, "far pid 7", by_another=True, node=far.node), Outcome(2, "near pid 6", by_another=True)]
    left = dict.fromkeys([2, 99])
    assert [outcome.shard_id for outcome in _ended(found, left, attempts, parts, progress)] == [2]
    assert list(left) == [99]
    assert list(ray.get(attempts.retired.remote())) == [far]
    assert report.getvalue().startswith("synthesis: node far (far) gets no more work: worker far pid 7 found shard 99 ")
    again: Any = ray.get(attempts.take.remote("b", Device("near", "near", "0"), "near pid 6", 1))
    ray.kill(attempts)
    assert again.shard_id == 99


def test_a_store_that_does_not_answer_puts_the_look_off_to_the_workers_next_part(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    parts = FirstParts(made.summary["output"], made.summary["digest"], notes.append)

    def busy(uri: str) -> bool:
        raise DatasetError(f"cannot read {uri!r}: SlowDown")

    with monkeypatch.context() as outage:
        outage.setattr(first_parts.storage, "exists", busy)
        assert [parts.why_lost(Outcome(99, worker)) for worker in ("a", "b")] == ["", ""]
    assert len(notes) == 1
    assert "SlowDown" in notes[0]
    assert parts.why_lost(Outcome(2, "a")) == ""
    monkeypatch.setattr(first_parts, "_LOOK_AGAIN_S", (0.0,))
    assert "wrote shard 99" in parts.why_lost(Outcome(99, "b"))


# The worker of GPU 0 loses what it writes, as on a node where the output is another folder.
ELSEWHERE = """
import os
from pathlib import Path

def set_up():
    from pipeline.synthesis.writer import PartWriter

    whole = PartWriter.store

    def store(self, made):
        row = whole(self, made)
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "0":
            for file in Path(self.config.output, "data").glob(f"part-{made.shard_id:05d}-*"):
                file.unlink()
        return row

    PartWriter.store = store
"""


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_session")
def test_where_what_workers_write_is_lost_the_run_ends_and_names_the_node(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    file = write_config(tmp_path, tiny_folder, str(tmp_path / "out"), pool=TWO_ACTORS)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    job = start(["-m", "jobs.synthesize", "--config", str(file)], env, setup_hook="elsewhere.set_up")
    _, reported = job.communicate(timeout=500)
    assert job.returncode == 1, reported
    assert re.search(r"synthesis: node .* gets no more work: worker .* wrote shard \d as '.*', and it is not", reported)
    # The machine of the tests is one node, so nobody is left.
    assert re.search(r"error: IncompleteError: \d of 6 shards are done, .* no working worker is left: GPU", reported)
