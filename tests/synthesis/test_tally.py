"""Counts, index and plan of a run: how much it remembers of its shards."""

import errno
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.dataset import store
from pipeline.dataset.index import index_table, read_index, write_index
from pipeline.dataset.store import Progress
from pipeline.errors import DatasetError
from pipeline.synthesis.indexing import RunningIndex
from pipeline.synthesis.outcome import Outcome, from_table, to_table
from pipeline.synthesis.plan import plan_synthesis
from pipeline.synthesis.progress import ProgressReport
from pipeline.synthesis.shards import ShardPlan
from pipeline.synthesis.tally import Tally
from pipeline.synthesis.tracked_shards import TrackedShards
from pipeline.synthesis.writer import PartWriter
from pipeline.tracking.tracker import Tracker
from tests.synthesis.conftest import make_config


def test_what_workers_report_is_counted_and_not_kept() -> None:
    tally = Tally()
    made: dict[str, Any] = {"num_images": 4, "class_loss": 0.5, "teacher_confidence": 0.25, "num_steps": [8, 8]}
    for shard_id in range(1000):
        tally.add(Outcome(shard_id, f"worker {shard_id % 2}", **made, attempts=1 + shard_id // 998))
    assert (tally.num_ended, tally.num_images, tally.made_by.total()) == (1000, 4000, 1000)
    assert (tally.loss_sum / tally.num_images, tally.steps) == (0.5, {8: 2000})
    assert (tally.failures, tally.num_retried) == ({}, 2)


class Reported(Tracker):
    """Tracker that keeps the figures reported, by step."""

    def __init__(self) -> None:
        super().__init__([], {})
        self.figures: dict[int, Mapping[str, Any]] = {}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        self.figures[step] = values


def test_images_that_another_run_made_are_tracked_as_their_shards_are(tiny_folder: Path, tmp_path: Path) -> None:
    plan = plan_synthesis(make_config(tiny_folder, tmp_path / "out"))
    reported, tally = Reported(), Tally()
    made: dict[str, Any] = {"num_images": 5, "class_loss": 0.5, "teacher_confidence": 0.25}
    for each in (Outcome(0, "a", **made), Outcome(1, "a", by_another=True, num_images=5), Outcome(2, "a", error="x")):
        tally.add(each)
    TrackedShards(reported, plan).report(tally)
    ((step, figures),) = reported.figures.items()
    # The failed one counts in the step: none would come after it until another is done.
    assert (step, figures["shards_done"], figures["shards_failed"], figures["images"]) == (3, 2, 1, 10)
    # Those of this run alone.
    assert (tally.num_images, tally.class_loss) == (5, 0.5)


def test_a_run_that_tries_failed_shards_again_is_tracked_after_the_one_before(
    tiny_folder: Path, tmp_path: Path
) -> None:
    plan = plan_synthesis(make_config(tiny_folder, tmp_path / "out"))
    reported, tally = Reported(), Tally()
    before = Progress({0: 100, 1: 100}, {2: {"reason": "x"}}, [3])
    tally.add(Outcome(2, "a", num_images=5, class_loss=0.5, teacher_confidence=0.25))
    TrackedShards(reported, replace(plan, progress=before)).report(tally)
    ((step, figures),) = reported.figures.items()
    assert (step, figures["shards_done"], figures["shards_failed"]) == (4, 3, 0)


def test_a_plan_of_millions_of_images_takes_no_memory() -> None:
    plan = ShardPlan(range(1000), 10_000, 64)
    assert (len(plan), plan.num_images) == (156_250, 10_000_000)
    assert sys.getsizeof(plan) < 1000
    last = plan[156_249]
    assert (last["labels"], last["image_ids"][-1]) == ([999] * 64, "00999-009999")
    assert plan.count_images([0, 156_249]) == 128
    # Every image is in the shard and row that `places_of` says.
    shard_id, row = list(plan.places_of(7))[123]
    assert (plan[shard_id]["labels"][row], plan[shard_id]["image_ids"][row]) == (7, "00007-000123")
    with pytest.raises(IndexError, match="156250 shards, not -1"):
        plan[-1]


def test_the_row_of_a_part_that_is_there_is_the_row_that_its_maker_sent(tiny_folder: Path, tmp_path: Path) -> None:
    """As when its worker died before Ray had heard of the row."""
    config = make_config(tiny_folder, tmp_path / "out")
    plan = plan_synthesis(config)
    writer = PartWriter(config, plan.digest)
    sent = writer.write_shard(**plan.shards[1])
    again = writer.read_back(1)
    tally = Tally()
    tally.add(again)
    report = ProgressReport(tally, num_shards=6, num_done=0, num_images=30, stream=sys.stderr, why_silent=str)
    report.shard_finished(again)
    not_known = ("num_steps", "seconds", "store_s", "peak_bytes", "compile_s", "device")
    assert again == replace(sent, **{name: getattr(again, name) for name in not_known})


def test_what_a_worker_sends_is_what_the_driver_reads() -> None:
    sent = [
        Outcome(None, "a", handed_back=True, notes=["GPU 0 failed"], class_loss=1.0, teacher_confidence=0.5),
        Outcome(3, "b", labels=[1, 2], num_steps=[8, 9], class_loss=0.5, teacher_confidence=0.25, gpu="0", attempts=2),
    ]
    table = to_table(sent)
    assert from_table(table) == sent
    # Without rows too, as of a turn in which there was nothing to do.
    assert to_table([]).schema == table.schema


def test_the_index_is_written_while_a_run_goes_and_completed_at_its_end(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny_folder, tmp_path / "out")
    plan = plan_synthesis(config)
    writer = PartWriter(config, plan.digest)
    index = RunningIndex(config.output, plan.digest)
    index.add(writer.write_shard(**plan.shards[0]))
    assert len(read_index(config.output, plan.digest)) == 0
    monkeypatch.setattr("pipeline.synthesis.indexing._INTERVAL_S", 0.0)
    index.add(writer.write_shard(**plan.shards[1]))
    assert read_index(config.output, plan.digest)["shard_id"].to_pylist() == [0, 1]
    # One that another run makes at the same time.
    writer.write_shard(**plan.shards[2])
    table = index.complete(store.list_parts(config.output, plan.digest))
    assert table.equals(read_index(config.output, plan.digest).replace_schema_metadata(None))
    assert table["shard_id"].to_pylist() == [0, 1, 2]
    assert [worker is None for worker in table["worker"].to_pylist()] == [False, False, True]
    assert table["device"].to_pylist() == ["cpu", "cpu", None]
    of_processes = table["peak_bytes"].to_pylist()
    assert 2**24 < of_processes[0] <= of_processes[1]
    assert of_processes[2] is None
    assert table["labels"].to_pylist() == [[0, 1], [1, 2, 3], [3, 4]]


@pytest.mark.parametrize("asked", ["exists", "read_bytes"])
def test_a_store_that_does_not_answer_costs_the_index_neither_the_run_nor_what_others_wrote(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path)
    of_another = {"shard_id": 7, "num_rows": 5, "bytes": 10, "row_group_bytes": 20, "seconds": 3.0, "worker": "other"}
    index = RunningIndex(output, "d" * 64)
    write_index(output, "d" * 64, index_table([of_another]))
    index.add(Outcome(1, "mine", num_images=5, bytes=10, row_group_bytes=20, seconds=1.0))

    def busy(uri: str) -> Any:
        raise DatasetError(f"cannot read {uri!r}: SlowDown") from OSError(errno.EBUSY, "SlowDown")

    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0,))
    with monkeypatch.context() as outage:
        outage.setattr(storage, asked, busy)
        index.save()
        index.complete({1: 10, 7: 10})
    assert capsys.readouterr().err.count("could not be read, and is not written: DatasetError: cannot read") == 2
    assert read_index(output, "d" * 64)["worker"].to_pylist() == ["other"]
    index.save()
    assert read_index(output, "d" * 64)["worker"].to_pylist() == ["mine", "other"]


def test_at_the_end_the_index_is_written_though_the_store_throttles_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, whole, refused = str(tmp_path), storage.write_bytes, []
    index = RunningIndex(output, "d" * 64)
    index.add(Outcome(1, "mine", num_images=5, bytes=10, row_group_bytes=20, seconds=1.0))

    def busy(*arguments: Any, **options: Any) -> None:
        if not refused:
            refused.append(arguments)
            raise OSError(errno.EBUSY, "SlowDown")
        whole(*arguments, **options)

    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0,))
    monkeypatch.setattr(storage, "write_bytes", busy)
    index.complete({1: 10})
    assert len(refused) == 1
    assert read_index(output, "d" * 64)["worker"].to_pylist() == ["mine"]
