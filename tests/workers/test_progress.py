"""How far reading has come, as a job reports it."""

import logging
from collections.abc import Iterator

import pytest

from pipeline.workers.progress import _Counter, _report, progress


def test_images_that_are_read_again_after_a_worker_was_lost_are_not_counted_as_progress(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counter = _Counter()

    def ticks() -> Iterator[None]:
        for count in (30, 0, 50):
            counter.add(count)
            yield

    with caplog.at_level(logging.INFO, logger="sparse_inversion"):
        _report("calibrate", counter, 40, ticks())
    first, second = caplog.messages
    assert first.startswith("calibrate: 30 of 40 images, ")
    assert second == "calibrate: 80 images read, some of them again"


@pytest.mark.parametrize(("number", "said"), [(1, "1 image to read"), (2, "2 images to read")])
def test_what_is_to_be_read_is_said_in_good_english(number: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("calibrate", number, on_workers=False):
        pass
    assert capsys.readouterr().err == f"calibrate: {said}\n"
