import io
import logging
import re
import time
from typing import Any

import pytest

from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.progress import ProgressReport
from pipeline.synthesis.tally import Tally


def done(images: int, loss: float, num_steps: list[int] | None = None, **facts: Any) -> Outcome:
    known: dict[str, Any] = {"num_steps": num_steps or [8] * images, "seconds": 0.5}
    return Outcome(0, "a", num_images=images, class_loss=loss, **(known | facts))


FAILED = Outcome(3, "a", error="NonFiniteError", reason="tv_l2 is not finite", num_images=10)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Reported(ProgressReport):
    """A report with a tally of its own."""

    def __init__(self, stream: io.StringIO) -> None:
        self.tally = Tally()
        sizes = {"num_shards": 5, "num_done": 1, "num_images": 40, "whole_run": 200}
        super().__init__(self.tally, **sizes, stream=stream, why_silent=lambda: "0 GPUs are free")

    def shard_finished(self, outcome: Outcome) -> None:
        self.tally.add(outcome)
        super().shard_finished(outcome)


def test_plain_lines() -> None:
    stream = io.StringIO()
    with Reported(stream) as report:
        report.shard_finished(done(10, 1.0))
        report.shard_finished(FAILED)
        report.shard_finished(done(10, 2.0))
    lines = stream.getvalue().splitlines()
    assert "synthesis: shard 3 failed: NonFiniteError: tv_l2 is not finite" in lines
    assert re.fullmatch(
        r"synthesis: 3 of 5 shards done, 1 failed; \S+ images/s, \d+:\d\d:\d\d left; class loss 1\.5000", lines[-1]
    )
    # Of 40 images 10 failed with their shard.
    assert report.num_images_left == 10
    assert "\r" not in stream.getvalue()


def test_the_end_is_not_told_twice() -> None:
    stream = io.StringIO()
    with Reported(stream) as report:
        report.shard_finished(done(10, 1.0))
    assert len(stream.getvalue().splitlines()) == 1
    nothing = io.StringIO()
    with Reported(nothing):
        pass
    assert nothing.getvalue() == "synthesis: 1 of 5 shards done, 0 failed\n"


def test_a_batch_that_waited_for_its_slowest_images_says_so() -> None:
    stream = io.StringIO()
    with Reported(stream) as report:
        report.shard_finished(done(4, 1.0, [20, 200, 40, 30]))
        report.shard_finished(done(2, 1.0, [50, 50]))
        report.shard_finished(done(2, 1.0, [200, 200], resumed="shard 0 went on from a checkpoint"))
    reported = [line for line in stream.getvalue().splitlines() if " ran " in line]
    assert reported == [
        "synthesis: shard 0 ran 200 steps for 1 of 4 images, the others took 30 on average",
        "synthesis: shard 0 ran all 200 steps, none of its 2 images ended early",
    ]
    assert "\nsynthesis: shard 0 went on from a checkpoint\n" in stream.getvalue()


def test_a_terminal_has_one_line_that_is_rewritten() -> None:
    stream = Terminal()
    with Reported(stream) as report:
        report.shard_finished(done(10, 1.0))
        report.shard_finished(done(10, 1.0))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 3


def test_many_small_shards_do_not_fill_a_log() -> None:
    stream = io.StringIO()
    with Reported(stream) as report:
        for _ in range(100):
            report.shard_finished(done(1, 0.0))
    assert len(stream.getvalue().splitlines()) <= 3


def test_time_spent_waiting_for_nodes_is_not_counted_into_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), [100.0]
    monkeypatch.setattr("pipeline.synthesis.progress.time.monotonic", lambda: clock[0])
    report = Reported(stream)
    # Ten minutes for a node, then ten images in two seconds.
    clock[0] += 602
    report.shard_finished(done(10, 1.0, seconds=2.0))
    assert "5 images/s, 0:00:06 left" in report.status()


def test_quiet_runs_print_faults_alone(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    with caplog.at_level(logging.WARNING, logger="sparse_inversion"), Reported(stream) as report:
        report.shard_finished(done(4, 1.0, [20, 200, 40, 30], resumed="shard 0 went on from a checkpoint"))
        report.note("worker on GPU 0 failed")
        report.shard_finished(FAILED)
    assert stream.getvalue().splitlines() == [
        "synthesis: worker on GPU 0 failed",
        "synthesis: shard 3 failed: NonFiniteError: tv_l2 is not finite",
    ]


def test_silence_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.synthesis.progress._SILENCE_S", 0.05)
    stream = io.StringIO()
    with Reported(stream):
        deadline = time.monotonic() + 5
        while "0 GPUs are free" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "no shard finished for" in stream.getvalue()
