"""How far reading has come, as a job reports it."""

import logging
from collections.abc import Iterator

import pytest

from pipeline.progress import _Counter, _report


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
