import json
from dataclasses import dataclass

import pytest

from jobs.entry import run_job
from pipeline.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing much.

    Args:
        outcome: what becomes of the job.
    """

    outcome: str


def job(config: Config) -> dict[str, object]:
    if config.outcome == "error":
        raise DatasetError("cannot read 'x'")
    return {"outcome": config.outcome, "complete": config.outcome == "done"}


def run(*argv: str) -> int:
    return run_job("example", Config, job, argv)


def test_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--outcome", "done") == 0
    assert json.loads(capsys.readouterr().out) == {"outcome": "done", "complete": True}


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
