"""One process at a time works on an output; one that died is followed, at once where its machine is this one."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.outputs import lease as lease_module
from pipeline.outputs.lease import NAME, is_held, lease

FAST: dict[str, Any] = {"beat_s": 0.05, "dead_s": 0.6}


def test_alone_it_is_had_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with lease(str(tmp_path), "distill", **FAST) as waited:
        assert waited is False
        assert os.listdir(tmp_path) == [NAME]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", '{"token": "ab', "[]", "{}"])
def test_an_incomplete_file_is_taken_over_after_a_while(content: str, tmp_path: Path) -> None:
    """As a process that was killed leaves it where there are no hard links."""
    (tmp_path / NAME).write_text(content)
    started = time.monotonic()
    with lease(str(tmp_path), "distill", **FAST) as waited:
        assert waited is False
        assert time.monotonic() - started >= FAST["dead_s"]
    assert os.listdir(tmp_path) == []


def test_a_driver_with_an_error_of_its_own_for_missing_files_holds_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of SMB, whose error is an OSError with this number, and no FileNotFoundError."""

    class SmbError(OSError):
        pass

    class Smb(LocalFileSystem):
        protocol = "smb"

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
            if not os.path.exists(path):
                raise SmbError(errno.ENOENT, "no such file")
            return super().cat_file(path, start, end, **options)

    monkeypatch.setitem(_registry, "smb", Smb)
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", ())
    assert not is_held(f"smb://{tmp_path}")


@pytest.mark.parametrize("place", ["local", "s3"])
def test_of_several_one_works_at_a_time_and_the_others_are_reported(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if place == "s3":
        request.getfixturevalue("s3")
    output = "s3://made/out" if place == "s3" else str(tmp_path)
    at_work: list[int] = []
    start = threading.Barrier(4)

    def work(number: int) -> bool:
        start.wait()
        with lease(output, "distill", **FAST) as waited:
            at_work.append(number)
            assert at_work == [number]
            threading.Event().wait(0.3)
            at_work.remove(number)
            return waited

    with ThreadPoolExecutor(4) as threads:
        waited = list(threads.map(work, range(4)))
    assert waited.count(False) <= 2  # one had it at once; the next may have found it just given back
    assert f"distill: a run with the same settings is at work on {output!r}" in capsys.readouterr().err
    assert storage.find_files(output) == []


def write_lease(folder: Path, **changes: Any) -> None:
    other = {"host": "elsewhere", "pid": 1, "pid_namespace": "", "token": "t", "since": "then", "beat": 3}
    (folder / NAME).write_text(json.dumps({**other, **changes}))


def test_one_without_a_sign_of_life_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lease(tmp_path)
    with lease(str(tmp_path), "calibrate", **FAST) as waited:
        assert waited is False
    assert "(elsewhere pid 1, since then): waiting for it to end, or for 0.6 s" in capsys.readouterr().err


def test_one_that_was_killed_here_is_followed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, sys; from pipeline.outputs.lease import lease\n"
        "with lease(sys.argv[1], 'x'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert os.listdir(tmp_path) == [NAME]
    with lease(str(tmp_path), "distill", beat_s=60, dead_s=600):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr().err == ""


def test_what_the_work_raises_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(str(tmp_path), "distill", **FAST):
        _ = 1 / 0
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not lease_module._BOOT_ID.exists(), reason="the system does not tell its boots apart")
@pytest.mark.parametrize("boot_id", ["another", None])
def test_of_a_process_before_a_restart_the_number_says_nothing(
    boot_id: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor of one on another machine of the same name; a lease of an earlier version does not say which it was."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    there = {**lease_module._who(), "pid": int(gone.stdout), "token": "t", "since": "then", "beat": 3}
    (tmp_path / NAME).write_text(json.dumps(there))
    with lease(str(tmp_path), "distill", beat_s=0.05, dead_s=600):
        assert json.loads((tmp_path / NAME).read_text())["boot_id"] == lease_module._BOOT_ID.read_text().strip()
    there |= {"boot_id": boot_id, "token": f"of boot {boot_id}"}
    (tmp_path / NAME).write_text(json.dumps({name: fact for name, fact in there.items() if fact is not None}))
    started = time.monotonic()
    with lease(str(tmp_path), "distill", **FAST):
        assert time.monotonic() - started >= FAST["dead_s"]
    assert "waiting for it to end, or for 0.6 s" in capsys.readouterr().err


def test_a_store_that_does_not_answer_at_the_end_hides_nothing_of_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(uri: str) -> None:
        raise OSError(errno.EBUSY, "SlowDown")

    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0,))
    monkeypatch.setattr(storage, "remove", busy)
    with lease(str(tmp_path), "distill", **FAST):
        pass
    assert f"{NAME}' is left, a run that follows soon waits for up to 0.6 s: OSError" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError), lease(str(tmp_path), "distill", **FAST):
        _ = 1 / 0


def fail_reads(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> None:
    """Let the next reads fail, each with an error; all after them succeed."""
    read, left = storage.read_bytes, iter(errors)

    def busy(uri: str) -> bytes:
        error = next(left, None)
        if error is not None:
            raise DatasetError(f"cannot read {uri!r}: {error}") from error
        return read(uri)

    monkeypatch.setattr("pipeline.storage.files.read_bytes", busy)
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0,) * 3)


def test_a_store_that_does_not_answer_does_not_say_that_nobody_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, cut = FileNotFoundError(errno.ENOENT, "gone"), ConnectionResetError("cut")
    with lease(str(tmp_path), "calibrate", beat_s=0.05):
        # One that misses the file as it is replaced, and a store that comes back, and goes again.
        fail_reads(monkeypatch, gone, cut, None, cut, cut)
        assert is_held(str(tmp_path))
        fail_reads(monkeypatch, *[PermissionError(errno.EACCES, "denied")] * 9)
        with pytest.raises(DatasetError, match="denied"):
            is_held(str(tmp_path))
        fail_reads(monkeypatch, *[cut] * 90)
        with pytest.raises(DatasetError, match="cut"):
            is_held(str(tmp_path))
        monkeypatch.undo()
    assert not is_held(str(tmp_path))


def test_who_waits_does_not_take_the_moment_for_the_end_in_which_a_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As HDFS and SMB replace the file with each heartbeat."""
    monkeypatch.setattr("pipeline.outputs.lease._SETTLE_S", 2.0)
    write_lease(tmp_path)
    begun = threading.Event()

    def work() -> None:
        with lease(str(tmp_path), "distill", beat_s=0.1, dead_s=60):
            begun.set()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(work)
        for beat in range(3):
            assert not begun.wait(0.8)
            (tmp_path / NAME).unlink()
            assert not begun.wait(0.12)
            write_lease(tmp_path, beat=beat)
        (tmp_path / NAME).unlink()
        waiting.result(timeout=60)


def test_a_wait_for_a_heartbeat_is_said_and_waited_for_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lease(tmp_path)
    assert not is_held(str(tmp_path), dead_s=0.3)
    line = f"waiting up to 0.3 s to see whether elsewhere pid 1, since then, is still at work on {str(tmp_path)!r}\n"
    assert capsys.readouterr().err == line
    assert not is_held(str(tmp_path), dead_s=600)
    with lease(str(tmp_path), "calibrate", dead_s=600) as waited:
        assert waited is False
    assert capsys.readouterr().err == ""
    write_lease(tmp_path, beat=4)  # it was only slow
    assert not is_held(str(tmp_path), dead_s=0.3)
    assert "waiting up to 0.3 s" in capsys.readouterr().err


def test_a_lease_that_cannot_be_read_at_the_end_is_read_again_and_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with lease(str(tmp_path), "distill", beat_s=60):
        fail_reads(monkeypatch, ConnectionResetError("cut"))
    assert os.listdir(tmp_path) == []

    def work() -> float:
        fail_reads(monkeypatch, *[ConnectionResetError("cut")] * 9)
        return 1 / 0

    with pytest.raises(ZeroDivisionError), lease(str(tmp_path), "distill", beat_s=60):
        work()
    assert f"{NAME}' is left, a run that follows soon waits for up to 30 s: DatasetError" in capsys.readouterr().err
