"""Faults that are drawn, and five of them on a real cluster."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chaos_dataset import compare
from benchmarks.chaos_faults import KINDS, STORE_KINDS, draw
from benchmarks.chaos_training import JOBS, draw_kills
from tests.conftest import forking

ROOT = Path(__file__).parents[2]


def test_the_draw_is_decided_by_the_seed() -> None:
    one, again, other = (draw(30, seed, num_shards=30, per_episode=10) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize("seed", range(5))
def test_all_kinds_are_drawn_about_as_often(seed: int) -> None:
    episodes = draw(100, seed, num_shards=30, per_episode=10)
    counts = Counter(fault.kind for episode in episodes for fault in episode.faults)
    assert counts.total() == 100
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_an_episode_has_what_its_place_can_have_and_leaves_a_gpu(seed: int) -> None:
    for episode in draw(100, seed, num_shards=30, per_episode=10):
        kinds = Counter(fault.kind for fault in episode.faults)
        shards = [fault.shard_id for fault in episode.faults]
        assert sorted(set(shards)) == shards
        assert set(shards) <= set(range(30))
        assert kinds["gpu_broken"] <= 1
        assert kinds["node_lost"] <= 1
        assert episode.place == "s3" or not kinds.keys() & set(STORE_KINDS)


def test_kills_of_trainings_and_calibrations_are_decided_by_the_seed() -> None:
    one, again, other = (draw_kills(20, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert {job for job, _ in one} == set(JOBS)
    assert len(set(Counter(fault.kind for _, episode in one for fault in episode.faults).values())) == 1


def write_dataset(folder: Path, parts: dict[str, bytes], **manifest: object) -> str:
    (folder / "data").mkdir(parents=True)
    for name, content in parts.items():
        (folder / "data" / name).write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps({"config": {"output": str(folder)}, **manifest}))
    return str(folder)


def test_the_comparison_sees_what_is_lost_torn_or_doubled(tmp_path: Path) -> None:
    undisturbed = write_dataset(tmp_path / "undisturbed", {"part-0": b"zero", "part-1": b"one"})
    same = write_dataset(tmp_path / "same", {"part-0": b"zero", "part-1": b"one"})
    assert compare(same, undisturbed) == ([], [])
    torn = write_dataset(tmp_path / "torn", {"part-1": b"on", "part-2": b"two"}, digest="another")
    (tmp_path / "torn" / "failed").mkdir()
    (tmp_path / "torn" / "failed" / "shard-00001.json").write_text("{}")
    assert compare(torn, undisturbed) == (
        ["part-0", "part-1", "manifest.json"],
        ["part-2", "failed/shard-00001.json"],
    )


# One and a half minutes alone; beside other clusters on two cores, many more.
@pytest.mark.timeout(1300)
def test_five_faults_leave_no_trace() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--faults", "5", "--seed", "464"]
    env = forking(os.environ)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["faults"], result["identical"], result["lost"], result["doubled"]) == (5, True, 0, 0)
