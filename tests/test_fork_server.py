"""Workers of the tests' cluster, which are copies of one process, are as different as processes of their own."""

import os
import random
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
import ray
from ray.runtime_env import RuntimeEnv

from tests.conftest import forking, starting_cluster

pytestmark = pytest.mark.usefixtures("ray_session")


def two_workers(env: dict[str, str] | None = None) -> list[Any]:
    """Two processes that have done nothing yet."""

    class Worker:
        def ask(self) -> dict[str, Any]:
            return {
                "drawn": [random.random(), np.random.rand(), ray.ObjectRef.from_random().hex()],
                "group": os.getpgid(0) == os.getpid(),
                "path": sys.path,
                "own": [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "jobs", "tests")],
                "environment": dict(os.environ),
                "preloaded": "torch" in sys.modules,
            }

    actor: Any = ray.remote(num_cpus=0, runtime_env=RuntimeEnv(env_vars=env or {}))(Worker)
    both = [actor.remote() for _ in range(2)]
    answers = ray.get([worker.ask.remote() for worker in both])
    for worker in both:
        ray.kill(worker)
    return answers


def test_copies_draw_other_numbers_and_have_nothing_of_this_project_yet() -> None:
    one, other = two_workers({"FRESH": "1"})
    assert [a == b for a, b in zip(one["drawn"], other["drawn"], strict=True)] == [False] * 3
    assert one["preloaded"]
    assert one["group"]
    assert one["own"] == []
    assert str(Path(__file__).parent) not in one["path"]


def test_copies_begin_as_their_runtime_environment_says(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['CUSTOMIZED'] = 'yes'\n")
    (one, _) = two_workers({"PYTHONPATH": str(tmp_path), "OF_THE_TEST": "yes"})
    assert one["preloaded"]
    assert {"CUSTOMIZED": "yes", "OF_THE_TEST": "yes"}.items() <= one["environment"].items()
    assert str(tmp_path) in one["path"]


def test_a_copy_ends_with_the_raylet_of_its_node_whose_copies_are_of_a_server_that_goes_on() -> None:
    raylet = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    code = f"from tests.fork_server import _end_with; _end_with({raylet.pid})"
    copy = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    with pytest.raises(subprocess.TimeoutExpired):
        copy.wait(1.5)
    raylet.communicate(b"\n")
    assert copy.wait(60) == 1


JOB = """
import sys
import ray
own = {"address": "local", "num_cpus": 1, "include_dashboard": False}
ray.init(**{"address": sys.argv[1]} if sys.argv[1:] else own)
preloaded = ray.remote(lambda: "torch" in __import__("sys").modules)
print(ray.get(preloaded.remote(), timeout=200), ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_workers_of_another_cluster_are_copies_too_for_each_of_its_jobs(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def start(*address: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", JOB, *address]
        return subprocess.Popen(command, env=forking(os.environ), stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)

    with starting_cluster(tmp_path_factory), start() as first:
        assert first.stdout is not None
        line = first.stdout.readline()
        if not line:
            pytest.fail(first.communicate("", timeout=240)[1])
        preloaded, address = line.split()
        with start(address) as second:
            answer, reported = second.communicate("", timeout=240)
        first.communicate("", timeout=240)
    assert preloaded == "True"
    assert answer.split() == ["True", address], reported


def test_without_a_server_a_process_becomes_the_worker_itself(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    env = {**forking(os.environ), "FORKS": str(tmp_path / "none")}
    command = [sys.executable, "-c", JOB]
    with starting_cluster(tmp_path_factory):
        done = subprocess.run(command, env=env, input="", capture_output=True, text=True, timeout=240)
    assert done.stdout.startswith("False "), done.stdout + done.stderr
