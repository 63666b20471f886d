"""The job as a user starts it, killed at the worst moments and started again."""

import json
from pathlib import Path

import pytest

from tests.synthesis.conftest import Made, parts_of, start, write_config

# Loaded by Python in the driver and in the workers, it kills them at an exact moment: when a part's temporary file is
# opened, is to be moved into place, or has been moved, and as many parts as the order says are there. An order that
# names a driver stays: its other workers, which Ray ends a moment later, must not go on meanwhile.
KILLER = """
import os, signal, sys

def kill(event, args):
    if event not in ("open", "os.rename", "os.remove") or ".part-" not in str(args[0]):
        return
    data = os.environ["KILL_DATA"]
    parts = len(os.listdir(data)) if os.path.exists(data) else 0
    order = os.path.join(os.environ["KILL_ORDERS"], event + "-" + str(parts))
    if os.path.exists(order):
        driver = open(order).read()
        if not driver:
            os.unlink(order)
        try:
            os.kill(int(driver or os.getpid()), signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""


@pytest.mark.usefixtures("ray_session")
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(made: Made, tiny_folder: Path, tmp_path: Path) -> None:
    orders, output = tmp_path / "orders", tmp_path / "out"
    orders.mkdir()
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    file = write_config(tmp_path, tiny_folder, str(output), pool={"device": "cpu"})
    env = {"PYTHONPATH": str(tmp_path), "KILL_ORDERS": str(orders), "KILL_DATA": str(output / "data")}

    def run(order: str, *, driver: bool) -> tuple[int, str, str]:
        process = start(["-m", "jobs.synthesize", "--config", str(file)], env)
        # Moved into place: a worker must not see an empty order.
        (tmp_path / "order").write_text(str(process.pid) if driver else "")
        (tmp_path / "order").rename(orders / order)
        out, reported = process.communicate(timeout=200)
        assert driver == (orders / order).exists(), reported
        (orders / order).unlink(missing_ok=True)
        return process.returncode, out, reported

    # Between the temporary write and the move: half a dataset, and a temporary file outside `data/`.
    assert run("os.rename-1", driver=True)[0] == -9
    assert len(parts_of(output)) == 1
    assert [path.name[:6] for path in (output / ".tmp").iterdir()] == [".part-"]
    # Right after the move: that part is done, though nobody heard of it.
    assert run("os.remove-3", driver=True)[0] == -9
    assert len(parts_of(output)) == 3
    # A worker alone, before it writes: Ray starts another, and the job ends well with what was missing.
    code, out, reported = run("open-4", driver=False)
    assert code == 0, reported
    summary = json.loads(out)
    assert (summary["complete"], summary["num_images_made"]) == (True, 15)
    assert parts_of(output) == made.parts
    assert not (output / ".tmp").exists()
    assert "6 of 6 shards done, 0 failed" in reported
