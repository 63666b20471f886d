"""A job that is told to stop, as by `ray job stop`, with its actors at work."""

import signal
from pathlib import Path

import pytest

from tests.synthesis.conftest import start, write_config


@pytest.mark.usefixtures("ray_session")
def test_sigterm_ends_a_run_with_one_line_and_whole_parts(tiny_folder: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path, tiny_folder, str(tmp_path / "out"), images_per_class=300)
    process = start(["-m", "jobs.synthesize", "--config", str(file)], {})
    assert process.stderr is not None
    while "600 shards done" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    *_, last = process.stderr.read().splitlines()
    assert process.wait(timeout=60) == 143
    done, text = last.removeprefix("stopped: ").split(" ", 1)
    assert text == "of 600 shards done, run it again for the rest"
    assert int(done) >= 1
    assert {path.name[:5] for path in (tmp_path / "out" / "data").iterdir()} == {"part-"}
