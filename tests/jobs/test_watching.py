"""`jobs.status --watch`, on a terminal and elsewhere."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import status
from jobs.watching import _tell_rest, describe, watch
from pipeline.dataset import store
from pipeline.errors import DatasetError
from tests.conftest import make_manifest
from tests.jobs.test_status import DIGEST, begin, part


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def looks(output: Path) -> Any:
    """A run that finishes one shard between two looks."""
    begin(str(output))
    left, whole = [0, 1, 2], status.look

    def look() -> dict[str, Any]:
        found = whole(str(output))
        if left:
            store.write_part(str(output), left[0], DIGEST, part(left.pop(0)))
        return found

    return look


def test_elsewhere_each_change_is_a_line_until_all_is_done(tmp_path: Path) -> None:
    stream = io.StringIO()
    found = watch(looks(tmp_path), every_s=0, stream=stream, pause=lambda seconds: None)
    assert found["complete"] is True
    lines = stream.getvalue().splitlines()
    assert [line.split("; ")[1] for line in lines] == [
        f"shards {done} of 3 done ({percent}%)" for done, percent in ((0, 0), (1, 33), (2, 66), (3, 100))
    ]
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_one_table_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    stream = Terminal()
    watch(looks(tmp_path), every_s=0, stream=stream, pause=lambda seconds: None)
    first, *redrawn = stream.getvalue().split("\x1b[")
    assert first.splitlines()[:2] == [f"output    {tmp_path}", "shards    0 of 3 done (0%)"]
    # Up by as many rows as there were, and erase.
    assert redrawn[0] == f"{len(first.splitlines())}A\r"
    assert redrawn[1].startswith("J")


def test_ctrl_c_ends_it_with_the_last_state(tmp_path: Path) -> None:
    def pause(seconds: float) -> None:
        raise KeyboardInterrupt

    found = watch(looks(tmp_path), every_s=10, stream=io.StringIO(), pause=pause)
    assert (found["complete"], found["num_done"]) == (False, 0)


def test_so_it_does_in_the_middle_of_a_look(tmp_path: Path) -> None:
    whole, looked = looks(tmp_path), 0

    def look() -> dict[str, Any]:
        nonlocal looked
        looked += 1
        if looked == 3:
            raise KeyboardInterrupt
        return whole()

    found = watch(look, every_s=0, stream=io.StringIO(), pause=lambda seconds: None)
    assert (found["complete"], found["num_done"]) == (False, 1)


def test_storage_that_does_not_answer_once_is_asked_again(tmp_path: Path) -> None:
    whole, looked, stream = looks(tmp_path), 0, io.StringIO()

    def look() -> dict[str, Any]:
        nonlocal looked
        looked += 1
        if looked == 2:
            raise DatasetError("cannot list 'out'") from ConnectionError("reset")
        if looked > 10:
            raise DatasetError("foreign files")
        return whole()

    assert watch(look, every_s=0, stream=stream, pause=lambda seconds: None)["complete"] is True
    assert [line for line in stream.getvalue().splitlines() if "; not seen cannot list 'out'" in line]
    looked = 10
    with pytest.raises(DatasetError, match="foreign files"):
        watch(look, every_s=0, stream=stream, pause=lambda seconds: None)


def test_the_time_left_goes_by_what_was_done_since_the_first_look() -> None:
    first = {"job": "synthesize", "output": "out", "num_done": 10, "num_shards": 100}
    now = {**first, "num_done": 20, "num_failed": 1, "num_damaged": 0, "num_retried": 3, "actor_hours": 0.5}
    assert describe(now, first, 60.0) == {
        "output": "out",
        "shards": "20 of 100 done (20%)",
        "trouble": "1 failed, 3 retried",
        "speed": "10 shards a minute, 0:08:00 left",
        "inverting": "30 minutes of actors so far",
    }


def test_work_is_left_out_while_unknown_and_time_left_at_the_end() -> None:
    first = {"job": "synthesize", "output": "out", "num_done": 0, "num_shards": 4}
    now = {**first, "num_done": 2, "num_failed": 0, "num_damaged": 0, "num_retried": 0, "actor_hours": 0.0}
    assert "inverting" not in describe(now, first, 60.0)
    over = describe({**now, "num_done": 4, "actor_hours": 2.5}, first, 60.0)
    assert (over["speed"], over["inverting"]) == ("4 shards a minute", "2.5 hours of actors")


def test_time_alone_is_no_change(tmp_path: Path) -> None:
    begin(str(tmp_path))
    store.write_part(str(tmp_path), 0, DIGEST, part(0))
    stream, looked = io.StringIO(), 0

    def pause(seconds: float) -> None:
        nonlocal looked
        looked += 1
        if looked == 3:
            raise KeyboardInterrupt
        time.sleep(1.1)

    watch(lambda: status.look(str(tmp_path)), every_s=0, stream=stream, pause=pause)
    assert len(stream.getvalue().splitlines()) == 1


def test_rows_fit_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    watch(looks(tmp_path), every_s=0, stream=stream, pause=lambda seconds: None)
    assert max(len(row) for row in stream.getvalue().partition("\x1b")[0].splitlines()) == 29


def test_outputs_of_other_jobs_have_rows_of_their_own() -> None:
    training = {"job": "distill", "output": "out", "epochs": 60, "epochs_done": 12, "missing": ["result.json"]}
    assert describe(training, {**training, "epochs_done": 10}, 20.0) == {
        "output": "out",
        "epochs": "12 of 60 done",
        "speed": "0:08:00 left",
        "missing": "result.json",
    }
    calibration = {"job": "calibrate", "output": "out", "artifacts": [], "left": [], "failed": [], "missing": ["x"]}
    assert describe(calibration, calibration, 1.0)["artifacts"] == "none yet"
    assert describe({**calibration, "failed": [{}]}, calibration, 1.0)["trouble"] == "1 refused"
    assert "left" not in describe(calibration, calibration, 1.0)
    left = {**calibration, "left": ["w4a4.onnx", "w4a4.pt2"]}
    assert describe(left, calibration, 1.0)["left"] == "w4a4.onnx, w4a4.pt2 of an earlier run"


def test_nobody_waits_for_artifacts_that_were_refused() -> None:
    def pause(seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")

    state = {"artifacts": [], "left": [], "failed": [{}], "missing": []}
    found, stream = {"job": "calibrate", "output": "out", "complete": False, **state}, io.StringIO()
    assert watch(lambda: found, every_s=0, stream=stream, pause=pause) == found
    assert stream.getvalue().splitlines()[-1] == "the calibration is over, 1 refused"


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = looks(tmp_path)
    monkeypatch.setattr(status, "look", lambda uri: look())
    assert status.main([str(tmp_path), "--watch", "--every_s", "0.1"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["num_done"] == 3
    assert printed.err.count("shards") >= 4
    assert status.main([str(tmp_path), "--watch", "--every_s", "0"]) == 1
    assert "every_s must lie in [0.1, 86400], not 0" in capsys.readouterr().err


def nobody_waits(seconds: float) -> None:
    raise AssertionError("there is nothing to wait for")


def test_a_run_that_ended_with_failed_shards_is_over(tmp_path: Path) -> None:
    output, stream = str(tmp_path), io.StringIO()
    begin(output)
    store.write_failure(output, 1, {"error": "NonFiniteError", "reason": "shard 1: not finite"})
    for shard_id in (0, 2):
        store.write_part(output, shard_id, DIGEST, part(shard_id))
    found = watch(lambda: status.look(output), every_s=0, stream=stream, pause=nobody_waits)
    assert (found["complete"], found["num_failed"], found["num_missing"]) == (False, 1, 0)
    shown, why = stream.getvalue().splitlines()
    assert "shards 2 of 3 done (66%); trouble 1 failed" in shown
    # As if another run tried it again, which cannot be seen here.
    assert why == ("no shard is missing, 1 failed. If another run is making these again, its own lines say so")


def test_a_compaction_of_the_parts_that_there_were_is_over(tmp_path: Path) -> None:
    output, stream = str(tmp_path), io.StringIO()
    store.write_manifest(output, make_manifest(DIGEST) | {store.COMPACTION: {"num_parts": 2, "num_files": 2}})
    store.write_part(output, 0, DIGEST, part(0))

    def pause(seconds: float) -> None:
        store.write_part(output, 2, DIGEST, part(2))

    found = watch(lambda: status.look(output), every_s=0, stream=stream, pause=pause)
    assert (found["job"], found["complete"], found["missing"], found["num_done"]) == ("compact", False, [1], 2)
    assert stream.getvalue().splitlines()[-1] == (
        "the compaction merges 2 parts, and all are there; other shards were never made"
    )


@pytest.mark.parametrize("num_shards", [4, 5])
def test_a_compaction_with_damaged_parts_says_so(num_shards: int) -> None:
    stream = io.StringIO()
    found = {"job": "compact", "complete": False, "num_parts": 4, "num_failed": 0, "num_damaged": 2}
    found["num_shards"] = num_shards
    _tell_rest(found, stream)
    assert stream.getvalue() == (
        "no shard is missing, 2 damaged. If another run is making these again, its own lines say so\n"
    )
