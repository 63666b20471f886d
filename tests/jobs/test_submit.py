"""The jobs as a user submits them: `ray job submit` to a real local cluster with its dashboard and token."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm

from pipeline.artifacts.pt2 import open_pt2
from pipeline.dataset import store

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Cluster:
    """Address that jobs are submitted to, the environment with its token, and a folder for what jobs bring."""

    address: str
    environment: dict[str, str]
    folder: Path

    def submit(self, *entry_point: str, **environment: str) -> subprocess.CompletedProcess[str]:
        # A working folder of its own for each job: Ray may delete that of one while the next starts with the same.
        bring = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        for name in ("examples", "jobs", "pipeline"):
            shutil.copytree(ROOT / name, bring / name, ignore=shutil.ignore_patterns("__pycache__"))
        (bring / "name").write_text(bring.name)
        command = [RAY, "job", "submit", "--address", self.address, "--working-dir", str(bring), "--", *entry_point]
        return subprocess.run(
            command, env={**self.environment, **environment}, capture_output=True, text=True, timeout=280
        )

    def run(self, job: str, *flags: str) -> dict[str, Any]:
        """Submit a job that must succeed; what its one JSON line says."""
        done = self.submit("python", "-m", f"jobs.{job}", *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return json.loads(line)


def wait_until_ready(cluster: Cluster, head: subprocess.Popen[bytes], timeout_s: float = 400) -> None:
    """The dashboard comes some seconds after the head, and its agent, which starts jobs, after that."""
    deadline = time.monotonic() + timeout_s
    # Each try is a process that imports Ray, on the cores that the dashboard needs to start.
    while not answers(int(cluster.address.rpartition(":")[2])) and head.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    while (done := cluster.submit("python", "-c", "pass")).returncode:
        log = (cluster.folder / "head.log").read_text()
        assert head.poll() is None, log
        assert time.monotonic() < deadline, done.stderr + log


def answers(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: the paths of Ray's sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # Other clusters on the machine may have every one of Ray's usual ports.
    named = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = {name: free_port() for name in named} | {"min-worker-port": 0, "max-worker-port": 0}
    sizes = ["--num-cpus=4", "--num-gpus=0", f"--object-store-memory={150 * 2**20}"]
    flags = [*(f"--{name}={port}" for name, port in ports.items()), *sizes, f"--temp-dir={folder}"]
    # With --block the command is the parent of all that it starts, in a process group of their own.
    command = [RAY, "start", "--head", "--block", "--include-dashboard=true", "--disable-usage-stats", *flags]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        cluster = Cluster(f"http://127.0.0.1:{ports['dashboard-port']}", environment, folder)
        wait_until_ready(cluster, head)
        yield cluster
    finally:
        # Asked to end, it takes half a minute.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(900)
def test_synthesize_calibrate_distill(cluster: Cluster, tiny_folder: Path, tmp_path: Path) -> None:
    teacher = ["--teacher.name", f"local-dir:{tiny_folder}"]
    images, artifacts, student = (str(tmp_path / name) for name in ("images", "artifacts", "student"))

    config = ["--config", "examples/digits/configs/sparse.yaml", *teacher, "--output", images]
    small = ["--images_per_class=1", "--shard_size=5", "--inversion.iterations=4", "--pool.max_size=1"]
    stops = ["--inversion.stop_steps=[1, 2]", "--inversion.stop_fractions=[0.3, 0.3]"]
    made = cluster.run("synthesize", *config, *small, *stops)
    assert (made["num_done"], made["num_images_made"], made["failed"], made["missing"]) == (2, 10, [], [])
    assert store.read_manifest(images)["num_images"] == 10

    config = ["--config", "examples/digits/configs/calibrate.yaml", *teacher, "--images", images, "--output", artifacts]
    small = ["--labeled=null", "--settings=[{weights: 8, activations: 8}]", "--formats=[pt2]", "--workers.size=1"]
    calibrated = cluster.run("calibrate", *config, *small)
    assert calibrated["images"] == 10
    open_pt2(f"{artifacts}/w8a8.pt2")

    config = ["--config", "examples/digits/configs/distill.yaml", *teacher, "--images", images, "--output", student]
    small = ["--labeled=null", "--student.depth_pruned=[0]", "--epochs=2", "--batch_size=5"]
    distilled = cluster.run("distill", *config, *small)
    assert (distilled["epochs"], distilled["images"]) == (2, 10)
    model: Any = timm.create_model(f"local-dir:{distilled['student']}", pretrained=True)
    assert len(model.blocks) == 1


def test_failed_job_exits_1_and_says_why_in_a_line(cluster: Cluster, tiny_folder: Path, tmp_path: Path) -> None:
    config = ["--config", "examples/digits/configs/sparse.yaml", "--teacher.name", f"local-dir:{tiny_folder}"]
    done = cluster.submit("python", "-m", "jobs.synthesize", *config, "--output", str(tmp_path), "--classes=[10]")
    assert done.returncode == 1
    assert "error: ConfigError: classes holds 10, the teacher has 10 classes, from 0" in done.stdout
    assert "Traceback" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_wrong_token_is_refused(cluster: Cluster) -> None:
    done = cluster.submit("python", "-c", "print('let in')", RAY_AUTH_TOKEN="guessed")
    assert done.returncode != 0
    assert "let in" not in done.stdout
