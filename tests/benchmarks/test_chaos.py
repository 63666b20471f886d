"""Faults that are drawn, and five of them on a real cluster."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chaos_faults import KINDS, STORE_KINDS, draw

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


@pytest.mark.timeout(600)
def test_five_faults_leave_no_trace() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--faults", "5", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["faults"], result["identical"], result["lost"], result["doubled"]) == (5, True, 0, 0)
