"""Trying again what failed because of the storage."""

import errno

import aiohttp
import pytest

from pipeline.errors import DatasetError, PipelineError
from pipeline.storage import look_again, with_retries


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (OSError("no answer"), 3),
        (ConnectionResetError("reset"), 3),
        (OSError(errno.ENOSPC, "the disk is full"), 3),
        # Another run cleared temporary files while this one was writing.
        (FileNotFoundError(errno.ENOENT, "gone"), 3),
        (PermissionError(errno.EACCES, "denied"), 1),
        (OSError(errno.EROFS, "a disk that is only read"), 1),
        (OSError("Forbidden: as gcsfs says it"), 1),
        (DatasetError("damaged"), 1),
    ],
)
def test_what_may_pass_is_tried_again_and_what_would_come_again_is_not(
    monkeypatch: pytest.MonkeyPatch, error: Exception, calls: int
) -> None:
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0, 0.0))
    called: list[int] = []

    def work() -> None:
        called.append(1)
        raise error

    with pytest.raises(type(error)):
        with_retries(work)
    assert len(called) == calls


@pytest.mark.parametrize(("status", "calls"), [(403, 1), (503, 3)])
def test_the_answer_of_a_store_that_led_to_an_error_decides(
    monkeypatch: pytest.MonkeyPatch, status: int, calls: int
) -> None:
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0, 0.0))
    called: list[int] = []

    def work() -> None:
        called.append(1)
        raise OSError("refused") from aiohttp.ClientResponseError(None, (), status=status)  # type: ignore[arg-type]

    with pytest.raises(OSError, match="refused"):
        with_retries(work)
    assert len(called) == calls


def test_an_error_of_ours_is_tried_again_where_the_store_led_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0, 0.0))
    called: list[int] = []

    def work() -> str:
        called.append(1)
        if len(called) < 3:
            raise DatasetError("cannot read 's3://bucket/key'") from ConnectionResetError("reset")
        return "content"

    assert with_retries(work) == "content"
    with pytest.raises(PipelineError, match="not there"):
        with_retries(_not_there)


def _not_there() -> None:
    raise DatasetError("not there") from FileNotFoundError("key")


def test_delays_of_a_callers_own_decide_how_often_it_is_tried() -> None:
    called: list[int] = []

    def work() -> None:
        called.append(1)
        raise OSError("no answer")

    with pytest.raises(OSError, match="no answer"):
        with_retries(work, delays_s=(0.0, 0.0, 0.0, 0.0))
    assert len(called) == 5


def test_a_file_is_looked_for_again_until_it_is_there_or_no_look_is_left() -> None:
    found = iter([False, True, False, False])
    assert look_again(lambda: next(found), (0.0, 0.0, 0.0))
    assert not look_again(lambda: next(found), (0.0, 0.0))
    assert next(found, None) is None
