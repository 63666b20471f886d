import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

from jobs.entry import run_job
from pipeline.errors import DatasetError
from pipeline.log import logger


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing much.

    Args:
        outcome: what becomes of the job.
        output: where it would write.
    """

    outcome: str
    output: str | None = None


def job(config: Config) -> dict[str, object]:
    if config.outcome == "error":
        raise DatasetError("cannot read 'x'")
    if config.outcome == "done":
        logger.info("note: all is well")
        logger.warning("not quite")
    if config.outcome in ("SIGINT", "SIGTERM"):
        os.kill(os.getpid(), signal.Signals[config.outcome])
    if config.outcome == "raylet":
        print("(raylet) A worker died. To troubleshoot the problem, set this and that.")
    if config.outcome.startswith("exit"):
        sys.exit(int(config.outcome.removeprefix("exit")))  # as Ray's own signal handlers do
    return {"outcome": config.outcome, "complete": config.outcome == "done"}


def run(*argv: str) -> int:
    return run_job("example", Config, job, argv, left=lambda config: f"{config.outcome} came, 2 of 3 done")


def test_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--outcome", "done") == 0
    assert json.loads(capsys.readouterr().out) == {"outcome": "done", "complete": True}


def test_an_output_that_is_gone_with_the_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--outcome", "done", "--output", "memory://out") == 1
    line = "error: ConfigError: output 'memory://out' is in the memory of this process, and gone when the job ends: "
    assert capsys.readouterr().err == f"{line}name a folder\n"


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        ([], "note: all is well\nwarning: not quite\n"),
        (["--quiet"], "warning: not quite\n"),
        (["-q"], "warning: not quite\n"),
        (["-v"], "note: all is well\nwarning: not quite\n"),
    ],
)
def test_how_much_is_printed(flags: list[str], printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags, "--outcome", "done") == 0
    assert capsys.readouterr().err == printed


def test_where_an_error_came_from_is_printed_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--verbose", "--outcome", "error") == 1
    reported = capsys.readouterr().err
    assert "Traceback" in reported
    assert reported.endswith("error: DatasetError: cannot read 'x'\n")
    assert run("--outcome", "error") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_incomplete_is_not_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--outcome", "half") == 1
    assert json.loads(capsys.readouterr().out)["complete"] is False


def test_our_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--outcome", "error") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: DatasetError: cannot read 'x'\n"


def test_so_are_those_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--outcom", "done") == 1
    assert capsys.readouterr().err.startswith("error: ConfigError: ")


@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("exit15", 143), ("exit0", 130)])
def test_a_stopped_job_says_what_is_left(how: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run("--outcome", how) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"stopped: {how} came, 2 of 3 done\n")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_help_is_no_interruption() -> None:
    with pytest.raises(SystemExit) as exited:
        run("--help")
    assert exited.value.code == 0


def test_what_people_read_of_a_result_stands_above_it_and_not_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    def run_with_ending(*flags: str) -> int:
        told = lambda config, result: ["a table", f"of {result['outcome']}"]  # noqa: E731
        return run_job("example", Config, job, ["--outcome", "half", *flags], ending=told)

    assert run_with_ending() == 1
    captured = capsys.readouterr()
    assert captured.err == "a table\nof half\n"
    assert captured.out == '{"outcome": "half", "complete": false}\n'
    run_with_ending("--quiet")
    captured = capsys.readouterr()
    assert (captured.err, captured.out) == ("", '{"outcome": "half", "complete": false}\n')


def test_a_result_that_cannot_be_put_in_words_is_printed_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def cannot(config: Config, result: dict[str, object]) -> list[str]:
        raise DatasetError("cannot read 'x'")

    assert run_job("example", Config, job, ["--outcome", "raylet"], ending=cannot) == 1
    captured = capsys.readouterr()
    *_, line = captured.err.splitlines()
    assert line == "warning: the job is done, but its result could not be put in words: cannot read 'x'"
    assert json.loads(captured.out)["outcome"] == "raylet"


def test_of_what_ray_says_of_dead_workers_the_first_sentence_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    run("--outcome", "raylet")
    assert capsys.readouterr().err == "(raylet) A worker died.\n"


@pytest.mark.parametrize(("outcome", "code", "lines"), [("done", 0, 1), ("error", 1, 0)])
def test_what_ray_says_when_it_is_left_is_no_result(outcome: str, code: int, lines: int) -> None:
    script = (
        "import atexit, sys; atexit.register(lambda: print('(raylet) A worker died. Set this and that.'));"
        f"from tests.jobs.test_entry import run; sys.exit(run('--outcome', '{outcome}'))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert len(ended.stdout.splitlines()) == lines
    assert ended.stderr.endswith("(raylet) A worker died.\n")


def test_a_job_stopped_while_it_is_imported_says_so_in_a_line() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "jobs.synthesize"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # The package of the jobs is imported first, and torch long after it.
    while not process.stderr.readline().endswith("jobs.stopping\n"):
        assert process.poll() is None
    while not process.stderr.readline().endswith(" jobs\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    *_, last = process.stderr.read().splitlines()
    assert (process.wait(), last) == (130, "stopped: nothing was done")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A stream that takes nothing, as a full disk or a reader that is gone; the process's own are set back."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with Path("/dev/full").open("wb", buffering=0) as device:
        yield io.TextIOWrapper(device, write_through=True)


def test_a_standard_output_that_takes_no_result_is_one_line(full: TextIO, capsys: pytest.CaptureFixture[str]) -> None:
    sys.stdout = full
    assert run("--outcome", "done", "--quiet") == 1
    # Otherwise Python would print a second error when it ends.
    assert sys.stdout is not full
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the job is done, but its result could not be printed: OSError: [Errno 28] No space left on device"
    )


def test_messages_that_nobody_can_read_end_no_job(full: TextIO, capsys: pytest.CaptureFixture[str]) -> None:
    """As with `2>&1 | head`, which ended a job, and `2>&-`, with which messages went to standard output."""
    sys.stderr = full
    assert run("--outcome", "done") == 0
    sys.stderr = None  # type: ignore[assignment]
    assert run("--outcome", "done") == 0
    outcome = {"outcome": "done", "complete": True}
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [outcome, outcome]
